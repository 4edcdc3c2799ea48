"""examples/plug_volume.py, run as a person runs it, against a real agent, storage daemon and board."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from opendpu.agent.client import AgentClient
from opendpu.errors import OpenDPUError
from opendpu.pki import Authority
from opendpu.storage.program import daemon_command

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))
from rack import Program, Rack

ROOT = Path(__file__).parents[3]


class Dpu:
    """One server and what the example needs of its SoC; OVS is not there, a disk does not need it."""

    def __init__(self) -> None:
        self.rack = Rack(slots=4, memory_mib=128)
        self.authority = Authority(self.rack.folder / "pki")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"

    def start(self) -> None:
        folder, rack = self.rack.folder, self.rack
        rack.start_board()
        rack.programs["storage"] = Program(*daemon_command(f"{folder}/qmp", rack.nbd), log=folder / "storage.out")
        # The example's own configuration, with the paths of this test.
        text = (ROOT / "examples" / "agent.toml").read_text().partition("[underlay]")[0]
        files = self.authority.issue("agent", ips=["127.0.0.1"])
        for example, here in {
            "/var/lib/opendpu": str(folder),
            "192.0.2.11:7443": self.address,
            'metrics = "127.0.0.1:9180"': "",
            "/etc/opendpu/tls/ca.pem": str(files.ca),
            "/etc/opendpu/tls/agent.pem": str(files.certificate),
            "/etc/opendpu/tls/agent.key": str(files.key),
            "/run/opendpu/card.qmp": rack.card_qmp,
            "/run/opendpu/storage.qmp": f"{folder}/qmp",
            "/run/opendpu/nbd.sock": rack.nbd,
            "/run/openvswitch/db.sock": f"{folder}/db.sock",
            "slots = 16": "slots = 4",
        }.items():
            assert example in text
            text = text.replace(example, here)
        config = folder / "agent.toml"
        config.touch(0o600)
        config.write_text(text)
        command = (sys.executable, "-m", "opendpu.agent.main", "--config", str(config))
        rack.programs["agent"] = Program(*command, log=folder / "agent.out")
        rack.programs["agent"].wait_for(self._answers, "the agent")

    def client(self, role: str = "conductor") -> AgentClient:
        files = self.authority.issue(role, role=role)
        return AgentClient(self.address, ca=str(files.ca), certificate=str(files.certificate), key=str(files.key))

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.get_server())
        except OpenDPUError:
            return False

    def example(self, *words: str, role: str = "conductor") -> subprocess.CompletedProcess[str]:
        files = self.authority.issue(role, role=role)
        tls = ["--ca", str(files.ca), "--certificate", str(files.certificate), "--key", str(files.key)]
        command = [sys.executable, str(ROOT / "examples" / "plug_volume.py"), self.address, *words, *tls]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=os.environ)


@pytest.fixture(scope="module")
def dpu() -> Iterator[Dpu]:
    dpu = Dpu()
    try:
        dpu.start()
        yield dpu
    finally:
        dpu.rack.close()


def test_plug_twice_and_unplug(dpu: Dpu) -> None:
    for _ in range(2):
        done = dpu.example("data-1", "--size-mib", "8")
        assert (done.returncode, done.stdout) == (0, "plugged in with serial number data-1\n"), done.stderr
    with dpu.client() as client:
        (disk,) = client.list_disks()
        assert (disk.spec.serial, disk.spec.volume_id, disk.slot > 0) == ("data-1", "data-1", True)
    for _ in range(2):
        done = dpu.example("data-1", "--unplug")
        assert (done.returncode, done.stdout) == (0, "data-1 is unplugged\n"), done.stderr
    with dpu.client() as client:
        assert not client.list_disks()
        assert [volume.id for volume in client.list_volumes()] == ["data-1"]


def test_wrong_role_is_told_with_its_reason(dpu: Dpu) -> None:
    done = dpu.example("data-2", role="observer")
    assert done.returncode == 1
    assert done.stderr.startswith("PermissionDenied: role observer may not call Volumes.CreateVolume")
