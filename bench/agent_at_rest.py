"""What the agent costs a SoC that has nothing to do: python bench/agent_at_rest.py [--seconds N] [--out FILE].

Runs the real parts in a temporary folder and network namespaces of its own: a board with the tiny Linux on it, a
storage daemon, ovsdb-server and ovs-vswitchd (userspace), and `opendpu-agent` with a boot disk and a NIC. Measures the
agent's process once with the host off and once with it running: resident memory, and CPU seconds in a minute. Needs
root. Only ovn-controller is not there: its word `ovn-installed` is written into OVSDB.
"""

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import pyroute2.netns
import tomli_w

from opendpu.agent.client import AgentClient
from opendpu.lab import wires
from opendpu.lab.chassis import Chassis
from opendpu.lab.image import build_image
from opendpu.lab.layout import Layout
from opendpu.lab.power import BoardPower
from opendpu.lab.program import Program
from opendpu.lab.supervisor import Supervisor
from opendpu.pki import Authority, Credentials
from opendpu.storage.pool import FilePool
from opendpu.storage.program import daemon_command

SETTLE_S = 20.0
LISTEN = "127.0.0.1:7443"
NIC = {"port_id": "11111111-1111-4111-8111-111111111111", "mac": "52:54:00:00:00:01", "mtu": 1400}


class Soc:
    """A SoC and its host in one network namespace, supervised as in the lab."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.netns = f"ob-{os.getpid()}"
        self.ram = Path(f"/dev/shm/{self.netns}.ram")
        self.authority = Authority(folder / "pki")
        self.chassis = Chassis(
            "soc", "", folder / "r", folder / "s", "10.99.0.1/24", "tcp:127.0.0.1:6642", uplink="up0"
        )
        self.supervisor = Supervisor("soc", run=folder / "r", state=folder / "s", netns=self.netns)

    def up(self) -> None:
        wires.add_namespace(self.netns)
        wires.ip("link", "set", "lo", "up", netns=self.netns)
        wires.ip("link", "add", "up0", "mtu", "9000", "type", "veth", "peer", "name", "up1", netns=self.netns)
        self.chassis.prepare()
        self._write_board()
        self._write_agent(self.authority.issue("agent", ips=["127.0.0.1"]))
        module = (sys.executable, "-m")
        programs = [program for program in self.chassis.programs() if not program.name.endswith("ovn-controller")]
        programs += [
            Program(
                "host", (*module, "opendpu.lab.board", "--config", f"{self.folder}/board.toml"), stop_signal="KILL"
            ),
            Program("storage", daemon_command(f"{self.folder}/qmp", f"{self.folder}/nbd")),
            Program("agent", (*module, "opendpu.agent.main", "--config", f"{self.folder}/agent.toml")),
        ]
        self.supervisor.configure(programs)
        self.supervisor.start()

    def down(self) -> None:
        self.supervisor.stop()
        wires.delete_namespace(self.netns)
        self.ram.unlink(missing_ok=True)

    def client_files(self) -> Credentials:
        return self.authority.issue("conductor", role="conductor")

    def pid(self) -> int:
        return self.supervisor.programs()["agent"][1]

    def _write_board(self) -> None:
        board = {
            "name": "bench", "uuid": str(uuid.uuid4()), "serial": "B1", "vcpus": 1, "memory_mib": 256, "slots": 8,
            "run_dir": f"{self.folder}/h", "state_dir": f"{self.folder}/hs", "ram_file": str(self.ram),
        }  # fmt: skip
        (self.folder / "board.toml").write_text(tomli_w.dumps(board))

    def _write_agent(self, files: Credentials) -> None:
        folder = self.folder
        config = folder / "agent.toml"
        config.touch(mode=0o600)
        tables = {
            "agent": {"state_dir": f"{folder}/a", "listen": LISTEN, "metrics": "127.0.0.1:9180"},
            "tls": {"ca": str(files.ca), "certificate": str(files.certificate), "key": str(files.key)},
            "card": {"driver": "emulated", "model": "bench", "serial": "B1", "bus": f"{folder}/h/card.qmp"},
            "storage": {"daemon": f"{folder}/qmp", "nbd": f"{folder}/nbd", "pool": f"{folder}/pool"},
            "network": {"ovsdb": self.chassis.ovsdb, "bridge": "br-int"},
            "underlay": {"bridge": "br-ul", "address": "10.99.0.1/24", "mtu": 9000},
        }
        config.write_text(tomli_w.dumps(tables))


def supply(soc: Soc) -> None:
    """Give the host its boot disk and NIC, and wait for both."""
    files = soc.client_files()
    with AgentClient(LISTEN, ca=str(files.ca), certificate=str(files.certificate), key=str(files.key)) as client:
        client.wait_healthy(timeout=30)
        client.create_volume("root", image="tiny")
        client.create_disk("root", volume_id="root", boot=True)
        representor = client.create_interface("nic", **NIC).representor
        client.wait_ready(disks=["root"], timeout=30)
        command = ["ovs-vsctl", "--timeout=10", f"--db={soc.chassis.ovsdb}"]
        subprocess.run(
            [*command, "wait-until", "Interface", representor, "external_ids:iface-id!=[]", "--", "set", "Interface",
             representor, "external_ids:ovn-installed=true"],
            check=True,
        )  # fmt: skip
        client.wait_ready(interfaces=["nic"], timeout=30)


def measure(pid: int, seconds: float) -> dict[str, float]:
    def cpu_s() -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    before, began = cpu_s(), time.monotonic()
    time.sleep(seconds)
    used = (cpu_s() - before) / (time.monotonic() - began) * 60
    resident = int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024
    return {"rss_mib": round(resident, 1), "cpu_s_per_min": round(used, 3)}


def run(folder: Path, seconds: float) -> dict[str, object]:
    FilePool(folder / "pool").add_image("tiny", build_image("tiny", Layout.make().cache / "images", print))
    soc = Soc(folder)
    try:
        soc.up()
        pyroute2.netns.setns(soc.netns)  # the agent listens on the SoC's loopback
        supply(soc)
        time.sleep(SETTLE_S)
        off = measure(soc.pid(), seconds)
        asyncio.run(power_on(folder, soc))
        time.sleep(SETTLE_S)
        on = measure(soc.pid(), seconds)
        return {**on, "host_off": off, "host_running": on, "seconds": seconds}
    finally:
        soc.down()


async def power_on(folder: Path, soc: Soc) -> None:
    power = BoardPower(qmp=f"{folder}/h/bmc.qmp", ram_file=soc.ram, console_log=folder / "hs/console.log")
    power.start()
    await power.on()
    async with asyncio.timeout(120):
        while b"READY up" not in (folder / "hs/console.log").read_bytes():  # noqa: ASYNC110 - QEMU writes the file
            await asyncio.sleep(0.5)
    await power.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long each of the two measurements takes")
    parser.add_argument("--out", type=Path, default=Path("build/bench/agent_at_rest.json"))
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="ob-", dir="/tmp"))
    try:
        report = json.dumps(run(folder, arguments.seconds), indent=2)
    finally:
        shutil.rmtree(folder)
    print(report)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(report + "\n")


if __name__ == "__main__":
    main()
