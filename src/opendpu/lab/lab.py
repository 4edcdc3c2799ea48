"""The emulated data centre: brings it up, takes it down, tells how it is.

    fabric    two switches                      mgmt     OVN central, Neutron, Ironic, their database
    gw        a chassis for tenants' workstations         socN, hostN, bmcN   the servers

Every step looks at what is there and does what is missing, so `up` after an interrupted `up`, or on a running lab, is
safe; `down` works on any remains.
"""

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyroute2.netns

from opendpu.agent.client import AgentClient
from opendpu.errors import (
    AccessDeniedError,
    AlreadyExistsError,
    DeadlineError,
    FailedPreconditionError,
    NotFoundError,
    OpenDPUError,
)
from opendpu.lab import wires
from opendpu.lab.accel import choose_accel
from opendpu.lab.central import Central
from opendpu.lab.chassis import Chassis
from opendpu.lab.image import build_image
from opendpu.lab.layout import (
    GATEWAY_INDEX,
    MANAGEMENT_ADDRESS,
    OOB_MTU,
    UNDERLAY_MTU,
    Layout,
    Settings,
    oob_address,
    tunnel_address,
)
from opendpu.lab.ovn_central import OvnCentral
from opendpu.lab.ovsdb import TlsFiles
from opendpu.lab.secrets import Secrets
from opendpu.lab.server import Server
from opendpu.lab.supervisor import Supervisor
from opendpu.pki import Authority
from opendpu.storage.pool import FilePool

Progress = Callable[[str], None]

IMAGES = {"debian": "debian-12", "tiny": "tiny"}  # recipe: name in the pool


@dataclass
class Lab:
    layout: Layout
    progress: Progress = lambda _: None

    @cached_property
    def authority(self) -> Authority:
        return Authority(self.layout.pki)

    @cached_property
    def secrets(self) -> Secrets:
        return Secrets.load(self.layout.state / "secrets.json")

    @property
    def settings(self) -> Settings:
        return self.layout.settings()

    @property
    def servers(self) -> list[Server]:
        return [Server(self.layout, self.settings, index) for index in range(1, self.settings.servers + 1)]

    def server(self, name: str) -> Server:
        """A server by its name (server1) or number (1)."""
        for server in self.servers:
            if name in (server.name, str(server.index)):
                return server
        known = ", ".join(server.name for server in self.servers)
        raise NotFoundError(f"no server {name!r} in lab {self.layout.name!r}; there are {known}")

    @property
    def pool(self) -> FilePool:
        return FilePool(self.layout.pool)

    @property
    def central(self) -> Central:
        return Central(
            state=self.layout.state / "central",
            run=self.layout.run / "central",
            netns=self.layout.management,
            oob_address=MANAGEMENT_ADDRESS,
            ovn_nb="tcp:127.0.0.1:6641",
            ovn_sb="tcp:127.0.0.1:6642",
            underlay_mtu=UNDERLAY_MTU,
            cache=self.layout.cache / "database",
            log=self.supervisor.log,
        )

    @property
    def supervisor(self) -> Supervisor:
        """Runs everything but the SoCs."""
        return Supervisor("dc", run=self.layout.run, state=self.layout.state)

    @property
    def gateway(self) -> Chassis:
        return Chassis(
            name="gw",
            netns=self.layout.netns("gw"),
            run=self.layout.run / "gw",
            state=self.layout.state / "gw",
            tunnel_address=f"{tunnel_address(GATEWAY_INDEX)}/24",
            sb_remote=f"ssl:{MANAGEMENT_ADDRESS}:6642",
            pki=self._tls("chassis-gw"),
            underlay_mtu=UNDERLAY_MTU,
            keep_underlay=True,
        )

    def up(self, *, servers: int | None = None, images: Sequence[str] = ("debian",), accel: str | None = None) -> None:
        """Bring everything up and return when the APIs answer and the agents are well."""
        if os.geteuid() != 0:
            raise AccessDeniedError("the lab makes network namespaces and taps: run this as root")
        if servers is not None and (self.layout.state / "settings.json").exists() and servers < self.settings.servers:
            raise FailedPreconditionError(
                f"the lab has {self.settings.servers} servers, which Ironic knows; for fewer start anew: "
                "opendpu lab down --purge"
            )
        built = {name: self._image(name) for name in images}
        if accel is None and not (self.layout.state / "settings.json").exists():
            self.progress("probing whether KVM can boot Linux here")
            tiny = built.get("tiny") or self._image("tiny")
            accel = choose_accel(self.layout.cache, tiny)
            self.progress(f"guests run on {accel}")
        self.layout.save_settings(servers=servers, accel=accel)
        self.layout.mark_up()
        self._issue_certificates()
        self.progress("laying cables: underlay, out-of-band network")
        self._lay_cables()
        self.progress("starting OVN central, the database, the gateway chassis, boards and BMCs")
        self._ovn.prepare()
        self.central.prepare(self.progress)
        self.gateway.prepare()
        with ThreadPoolExecutor(max_workers=4) as pool:
            list(pool.map(lambda server: server.prepare(self.authority, self.secrets), self.servers))
        apis = self.central.api_programs()
        self.supervisor.configure(
            [
                *self._ovn.programs(),
                *self.central.database_programs(),
                *self.gateway.programs(),
                *(program for server in self.servers for program in server.board_programs()),
                *apis,
            ]
        )
        self.supervisor.start()
        self.progress("starting the SoCs")
        for server in self.servers:
            server.supervisor.configure(server.soc_programs(self.authority))
            server.supervisor.start()
        for name, path in built.items():
            self._add_image(IMAGES[name], path)
        self.progress("starting Neutron and Ironic")
        self.central.initialise(self.progress)
        for program in apis:
            self.supervisor.start_program(program.name)
        self.enter_management()
        self.central.wait_ready(180)
        self.wait_agents()

    def wait_agents(self, *, timeout: float = 60) -> None:
        """Wait until each agent says that its card, storage and network are well."""
        for server in self.servers:
            self.wait_agent(server, timeout=timeout)

    def wait_agent(self, server: Server, *, timeout: float = 60) -> None:
        with self.agent(server) as agent:
            agent.wait_healthy(timeout)

    def agent(self, server: Server, *, role: str = "conductor") -> AgentClient:
        files = self.authority.files(role)
        return AgentClient(
            server.agent_address, ca=str(files.ca), certificate=str(files.certificate), key=str(files.key)
        )

    def enter_management(self) -> None:
        """Move this thread, and those it starts, to the management node.

        Its loopback has the APIs, its out-of-band port reaches agents and BMCs.
        """
        pyroute2.netns.setns(self.layout.management)

    def down(self, *, purge: bool = False) -> None:
        """Stop everything and remove every process, namespace, socket and memory file; `purge` also the state."""
        for server in self.servers:
            # A board whose storage daemon went first waits for it; it goes before.
            with contextlib.suppress(OpenDPUError, OSError):
                self.supervisor.stop_program(server.host)
            with contextlib.suppress(OpenDPUError):
                server.supervisor.stop(timeout=30)
        with contextlib.suppress(OpenDPUError):
            self.supervisor.stop()
        names = wires.namespaces(f"{self.layout.name}-")
        for name in names:
            _end(wires.pids_in(name))
        for name in names:
            wires.delete_namespace(name)
        for path in self._memory_files():
            path.unlink(missing_ok=True)
        shutil.rmtree(self.layout.run, ignore_errors=True)
        if purge:
            shutil.rmtree(self.layout.state, ignore_errors=True)

    def remains(self) -> list[str]:
        """What `down` should have removed and is still there."""
        left = [f"namespace {name}" for name in wires.namespaces(f"{self.layout.name}-")]
        marks = (str(self.layout.run).encode(), str(self.layout.state).encode())
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (folder / "cmdline").read_bytes()
                if any(mark in command for mark in marks) and int(folder.name) != os.getpid():
                    left.append(
                        f"process {folder.name}: {command.replace(bytes(1), b' ').decode(errors='replace')[:120]}"
                    )
        mounts = Path("/proc/self/mounts").read_text()
        left += [f"mount {mark.decode()}" for mark in marks if mark.decode() in mounts]
        left += [f"file {path}" for path in self._memory_files()]
        return left

    def _add_image(self, name: str, path: Path) -> None:
        """Put an image into the pool; one made by an older recipe gives way unless servers still stand on it."""
        try:
            self.pool.add_image(name, path)
        except AlreadyExistsError:
            try:
                self.pool.remove_image(name)
            except FailedPreconditionError as error:
                self.progress(f"the pool keeps the older image {name}: {error}")
            else:
                self.pool.add_image(name, path)

    def _image(self, recipe: str) -> Path:
        """A recipe's image, built when the cache lacks it."""
        cache = self.layout.cache / "images"
        return build_image(recipe, cache, lambda text: self.progress(f"{recipe} image: {text}"))

    def _memory_files(self) -> list[Path]:
        return list(Path("/dev/shm").glob(f"opendpu-{self.layout.name}-*"))  # noqa: S108  # where hosts' memory is

    @property
    def _ovn(self) -> OvnCentral:
        return OvnCentral(
            netns=self.layout.management,
            run=self.layout.run / "ovn",
            state=self.layout.state / "ovn",
            sb_listen=MANAGEMENT_ADDRESS,
            tls=self._tls("ovn-central"),
        )

    def _tls(self, name: str) -> TlsFiles:
        files = self.authority.files(name)
        return TlsFiles(files.ca, files.certificate, files.key)

    def _issue_certificates(self) -> None:
        self.authority.issue("ovn-central", dns=["ovn-central"], ips=[MANAGEMENT_ADDRESS])
        self.authority.issue("chassis-gw", dns=["gw"])
        for role in ("conductor", "observer"):
            self.authority.issue(role, role=role)

    def _lay_cables(self) -> None:
        layout = self.layout
        for name in (layout.fabric, layout.management, layout.netns("gw")):
            wires.add_namespace(name)
        wires.add_switch(layout.fabric, wires.UNDERLAY, mtu=UNDERLAY_MTU)
        wires.add_switch(layout.fabric, wires.OUT_OF_BAND, mtu=OOB_MTU)
        for part, address in (("mgmt", MANAGEMENT_ADDRESS), ("gw", oob_address(GATEWAY_INDEX))):
            wires.add_cable(layout.fabric, wires.OUT_OF_BAND, f"ob-{part}", layout.netns(part), "oob0",
                            mtu=OOB_MTU, address=f"{address}/24")  # fmt: skip
        wires.add_cable(layout.fabric, wires.UNDERLAY, "ul-gw", layout.netns("gw"), "up0", mtu=UNDERLAY_MTU)


def _end(pids: Sequence[int], *, timeout: float = 5.0) -> None:
    """TERM, then KILL, by pid."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + timeout
        while pids := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        else:
            return
    raise DeadlineError(f"processes {list(pids)} survive SIGKILL")
