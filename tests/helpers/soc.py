"""The agent as a process of its own against real sockets; see tests/unit/agent for its in-memory neighbours."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from opendpu.agent.client import AgentClient
from opendpu.errors import UnavailableError
from opendpu.pki import Authority
from opendpu.storage.program import daemon_command


class Soc:
    """A real ovsdb-server, storage daemon and `opendpu-agent` on one machine; no host's board is there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.authority = Authority(folder / "pki")
        self.port, self.metrics_port = free_port(), free_port()
        self.files = self.authority.issue("agent", ips=["127.0.0.1"])
        self.config = folder / "agent.toml"
        for name in ("state", "pool"):
            (folder / name).mkdir(mode=0o700)

    def write_config(self) -> None:
        folder = self.folder
        self.config.write_text(f"""
[agent]
state_dir = "{folder}/state"
listen = "127.0.0.1:{self.port}"
metrics = "127.0.0.1:{self.metrics_port}"
[tls]
ca = "{self.files.ca}"
certificate = "{self.files.certificate}"
key = "{self.files.key}"
[card]
driver = "emulated"
model = "m"
serial = "s"
bus = "{folder}/card.qmp"
[storage]
daemon = "{folder}/qmp"
nbd = "{folder}/nbd"
pool = "{folder}/pool"
[network]
ovsdb = "unix:{folder}/db.sock"
""")
        self.config.chmod(0o600)

    def start_neighbours(self) -> None:
        folder = self.folder
        schema = "/usr/share/openvswitch/vswitch.ovsschema"
        subprocess.run(["ovsdb-tool", "create", folder / "conf.db", schema], check=True)
        self.start(
            "ovsdb",
            ["ovsdb-server", f"--remote=punix:{folder}/db.sock", f"{folder}/conf.db", f"--unixctl={folder}/db.ctl"],
        )
        vsctl = ["ovs-vsctl", f"--db=unix:{folder}/db.sock", "--timeout=10", "--no-wait", "--retry"]
        subprocess.run([*vsctl, "init"], check=True)
        ids = ["external_ids:hostname=soc-1", "external_ids:system-id=system-1"]
        subprocess.run([*vsctl, "set", "Open_vSwitch", ".", *ids], check=True)
        self.start("storage", list(daemon_command(f"{folder}/qmp", f"{folder}/nbd")))

    def start(self, name: str, command: list[str]) -> None:
        # Files, not pipes: nobody would empty them.
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(command, stdout=log, stderr=log)

    def launch_agent(self) -> None:
        self.write_config()
        self.start("agent", [sys.executable, "-m", "opendpu.agent.main", "--config", str(self.config)])

    def start_agent(self) -> None:
        self.launch_agent()
        with self.client() as client:
            self.wait_answers(client)

    def wait_answers(self, client: AgentClient) -> None:
        end = time.monotonic() + 20
        while True:
            try:
                client.get_server()
                return
            except UnavailableError:
                if time.monotonic() > end or self.processes["agent"].poll() is not None:
                    print((self.folder / "agent.log").read_text())
                    raise
                time.sleep(0.1)

    def client(self, role: str | None = "conductor", authority: Authority | None = None, **options) -> AgentClient:
        files = (authority or self.authority).issue(f"client-{role or 'none'}", role=role)
        return AgentClient(
            f"127.0.0.1:{self.port}",
            **({"ca": str(self.files.ca), "certificate": str(files.certificate), "key": str(files.key)} | options),
        )

    def stop(self, name: str, number: int = signal.SIGTERM) -> int:
        process = self.processes.pop(name)
        process.send_signal(number)
        return process.wait(20)

    def end_processes(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
            process.wait(10)

    def close(self) -> None:
        self.end_processes()
        shutil.rmtree(self.folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
