"""A bare-metal server of the lab: a SoC, a host and a BMC, kept apart as in a rack.

Each has its own network namespace: the SoC's has the uplink and the out-of-band port, the BMC's the out-of-band port
only, the host's has nothing at all: the sole thing that joins a host to its SoC is the emulated PCIe bus (a QMP socket
for the hot-plug controller, an NBD socket and tap descriptors for the data).
"""

import os
import shutil
import signal
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from opendpu.errors import DeadlineError
from opendpu.lab import wires
from opendpu.lab.chassis import Chassis
from opendpu.lab.files import write_private
from opendpu.lab.layout import MANAGEMENT_ADDRESS, OOB_MTU, UNDERLAY_MTU, Layout, Settings, oob_address, tunnel_address
from opendpu.lab.ovsdb import TlsFiles
from opendpu.lab.program import Program
from opendpu.lab.secrets import Secrets
from opendpu.lab.supervisor import Supervisor
from opendpu.pki import Authority
from opendpu.storage.program import daemon_command

AGENT_PORT = 7443
_UUID_SPACE = uuid.UUID("6f70656e-6470-5500-8000-000000000000")


@dataclass(frozen=True)
class Server:
    """Server number `index` (from 1) of a lab."""

    layout: Layout
    settings: Settings
    index: int

    @property
    def name(self) -> str:
        return f"server{self.index}"

    @property
    def soc(self) -> str:
        return f"soc{self.index}"

    @property
    def host(self) -> str:
        return f"host{self.index}"

    @property
    def bmc(self) -> str:
        return f"bmc{self.index}"

    @property
    def uuid(self) -> str:
        """The board's DMI and Redfish identity; the same over the lab's lives."""
        return str(uuid.uuid5(_UUID_SPACE, f"{self.layout.name}/{self.name}"))

    @property
    def agent_address(self) -> str:
        return f"{oob_address(self.index)}:{AGENT_PORT}"

    @property
    def redfish_address(self) -> str:
        return f"https://{oob_address(100 + self.index)}"

    @property
    def ram_file(self) -> Path:
        """The host's DRAM; power-off empties it."""
        return Path(f"/dev/shm/opendpu-{self.layout.name}-{self.name}.ram")  # noqa: S108  # host memory belongs in memory

    @property
    def console_log(self) -> Path:
        return self.layout.state / self.host / "console.log"

    @property
    def console_socket(self) -> Path:
        return self.layout.run / self.host / "console.sock"

    @property
    def supervisor(self) -> Supervisor:
        """The SoC's init."""
        return Supervisor(
            self.soc, run=self.layout.run, state=self.layout.state / self.soc, netns=self._netns(self.soc)
        )

    def prepare(self, authority: Authority, secrets: Secrets) -> None:
        """Cables, certificates, configuration files and the SoC's OVS database."""
        layout, fabric = self.layout, self.layout.fabric
        for part in (self.soc, self.host, self.bmc):
            wires.add_namespace(self._netns(part))
            for folder in (layout.state / part, layout.run / part):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for part, address in ((self.soc, self.index), (self.bmc, 100 + self.index)):
            wires.add_cable(fabric, wires.OUT_OF_BAND, f"ob-{part}", self._netns(part), "oob0",
                            mtu=OOB_MTU, address=f"{oob_address(address)}/24")  # fmt: skip
        wires.add_cable(fabric, wires.UNDERLAY, f"ul-{self.soc}", self._netns(self.soc), "up0", mtu=UNDERLAY_MTU)
        authority.issue(f"agent-{self.soc}", dns=[self.soc], ips=[oob_address(self.index)])
        authority.issue(f"chassis-{self.soc}", dns=[self.soc])
        authority.issue(f"redfish-{self.bmc}", dns=[self.bmc], ips=[oob_address(100 + self.index)])
        self._chassis(authority).prepare()
        self._write_agent_config(authority)
        self._write_board_config()
        self._write_bmc_config(authority, secrets)

    def soc_programs(self, authority: Authority) -> list[Program]:
        """What the SoC's init runs. In the SoC's namespace already, so each program's own is left empty."""
        storage = Program(f"{self.soc}-storage", daemon_command(self._storage_qmp, self._nbd))
        agent = Program(
            f"{self.soc}-agent",
            (sys.executable, "-m", "opendpu.agent.main", "--config", str(self.layout.state / self.soc / "agent.toml")),
            stop_wait_s=15,
        )
        return [*self._chassis(authority).programs(), storage, agent]

    def board_programs(self) -> list[Program]:
        """The host's board and the BMC: they are in the rack, whatever the SoC does."""
        folder = self.layout.state / self.host
        run = ("-m", "opendpu.lab.board", "--config", str(folder / "board.toml"))
        bmc = ("-m", "opendpu.lab.bmc", "--config", str(self.layout.state / self.bmc / "bmc.toml"))
        return [
            # QEMU drains its disks when asked to end, which with a storage daemon that is away is never.
            Program(self.host, (sys.executable, *run), netns=self._netns(self.host), stop_signal="KILL"),
            Program(self.bmc, (sys.executable, *bmc), netns=self._netns(self.bmc)),
        ]

    def reboot_soc(self) -> None:
        """Kill every process of the SoC at once, as a power cut of the card's processor does, and start its init again.

        Its sockets are gone as with a fresh /run; its disk (state) stays. The host goes on.
        """
        self.kill_soc()
        shutil.rmtree(self.layout.run / self.soc, ignore_errors=True)
        (self.layout.run / self.soc).mkdir(mode=0o700)
        self.supervisor.start()

    def kill_soc(self) -> None:
        """SIGKILL to all that runs in the SoC's namespace, until nothing does."""
        deadline = time.monotonic() + 10
        while pids := wires.pids_in(self._netns(self.soc)):
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            if time.monotonic() > deadline:
                raise DeadlineError(f"{self.soc}: processes {pids} survive SIGKILL")
            time.sleep(0.02)

    def pid(self, role: str) -> int:
        """Pid of one of the SoC's programs (agent, storage, ovs-vswitchd ...); 0 while it is down."""
        return self.supervisor.programs()[f"{self.soc}-{role}"][1]

    def driver_info(self, authority: Authority, secrets: Secrets) -> dict[str, str]:
        """The Ironic node's driver_info."""
        conductor = authority.files("conductor")
        return {
            "redfish_address": self.redfish_address,
            "redfish_system_id": f"/redfish/v1/Systems/{self.uuid}",
            "redfish_username": secrets.bmc_user,
            "redfish_password": secrets.bmc_password,
            "redfish_verify_ca": str(conductor.ca),
            "dpu_agent_address": self.agent_address,
            "dpu_agent_ca": str(conductor.ca),
            "dpu_agent_certificate": str(conductor.certificate),
            "dpu_agent_key": str(conductor.key),
        }

    def _netns(self, part: str) -> str:
        return self.layout.netns(part)

    @property
    def _storage_qmp(self) -> str:
        return str(self.layout.run / self.soc / "storage.qmp")

    @property
    def _nbd(self) -> str:
        return str(self.layout.run / self.soc / "nbd.sock")

    def _chassis(self, authority: Authority) -> Chassis:
        files = authority.files(f"chassis-{self.soc}")
        return Chassis(
            name=self.soc,
            netns="",
            run=self.layout.run / self.soc,
            state=self.layout.state / self.soc,
            tunnel_address=f"{tunnel_address(self.index)}/24",
            sb_remote=f"ssl:{MANAGEMENT_ADDRESS}:6642",
            pki=TlsFiles(files.ca, files.certificate, files.key),
            underlay_mtu=UNDERLAY_MTU,
        )

    def _write_agent_config(self, authority: Authority) -> None:
        files = authority.files(f"agent-{self.soc}")
        run, state = self.layout.run, self.layout.state / self.soc
        write_toml(
            state / "agent.toml",
            {
                "agent": {"state_dir": str(state / "agent"), "listen": self.agent_address, "metrics": "127.0.0.1:9180"},
                "tls": {"ca": str(files.ca), "certificate": str(files.certificate), "key": str(files.key)},
                "card": {
                    "driver": "emulated",
                    "model": "OpenDPU emulated card",
                    "serial": f"EMU{self.index:05}",
                    "bus": str(run / self.host / "card.qmp"),
                    "limits": {"slots": self.settings.slots},
                },
                "storage": {"daemon": self._storage_qmp, "nbd": self._nbd, "pool": str(self.layout.pool)},
                "network": {"ovsdb": f"unix:{run / self.soc / 'db.sock'}", "bridge": "br-int"},
                "underlay": {
                    "bridge": "br-ul",
                    "address": f"{tunnel_address(self.index)}/24",
                    "mtu": UNDERLAY_MTU,
                },
            },
        )

    def _write_board_config(self) -> None:
        write_toml(
            self.layout.state / self.host / "board.toml",
            {
                "name": self.name,
                "uuid": self.uuid,
                "serial": f"ODPU{self.index:05}",
                "vcpus": self.settings.vcpus,
                "memory_mib": self.settings.memory_mib,
                "slots": self.settings.slots,
                "accel": self.settings.accel,
                "run_dir": str(self.layout.run / self.host),
                "state_dir": str(self.layout.state / self.host),
                "ram_file": str(self.ram_file),
            },
        )

    def _write_bmc_config(self, authority: Authority, secrets: Secrets) -> None:
        from opendpu.lab.bmc import htpasswd_line  # sushy-tools takes a second to import

        files = authority.files(f"redfish-{self.bmc}")
        state = self.layout.state / self.bmc
        write_private(state / "htpasswd", htpasswd_line(secrets.bmc_user, secrets.bmc_password))
        write_toml(
            state / "bmc.toml",
            {
                "name": self.name,
                "uuid": self.uuid,
                "vcpus": self.settings.vcpus,
                "memory_mib": self.settings.memory_mib,
                "qmp": str(self.layout.run / self.host / "bmc.qmp"),
                "ram_file": str(self.ram_file),
                "console_log": str(self.console_log),
                "listen": oob_address(100 + self.index),
                "port": 443,
                "certificate": str(files.certificate),
                "key": str(files.key),
                "auth_file": str(state / "htpasswd"),
                "state_dir": str(state),
            },
        )


def write_toml(path: Path, content: dict[str, object]) -> None:
    write_private(path, tomli_w.dumps(content))
