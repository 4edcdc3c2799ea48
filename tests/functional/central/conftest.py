"""A control plane in its own network namespace, under its own supervisor; gone afterwards, also after a failure."""

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from opendpu.lab import wires
from opendpu.lab.central import Central
from opendpu.lab.ovn_central import OvnCentral
from opendpu.lab.supervisor import Supervisor

OOB_ADDRESS = "10.98.0.254"


@dataclass(frozen=True)
class Plane:
    """What a test needs of a running control plane."""

    central: Central
    supervisor: Supervisor
    netns: str
    started_s: dict[str, float]

    def kill(self, name: str) -> int:
        """SIGKILL one service and return the pid of its successor."""
        before = self.supervisor.programs()[name][1]
        os.kill(before, signal.SIGKILL)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            state, pid = self.supervisor.programs()[name]
            if state == "RUNNING" and pid not in {0, before}:
                return pid
            time.sleep(0.05)
        raise AssertionError(f"{name} was not started again: {self.supervisor.programs()}")


def start(root: Path, netns: str, said: list[str]) -> Plane:
    """Bring a control plane up from what is in `root`."""
    began = time.monotonic()
    ovn = OvnCentral(netns=netns, run=root / "run/ovn", state=root / "ovn", sb_listen=OOB_ADDRESS)
    central = Central(
        state=root / "central",
        run=root / "run/central",
        netns=netns,
        oob_address=OOB_ADDRESS,
        ovn_nb="tcp:127.0.0.1:6641",
        ovn_sb="tcp:127.0.0.1:6642",
        cache=root / "cache",
    )
    supervisor = Supervisor("dc", run=root / "run", state=root)
    started: dict[str, float] = {}

    def mark(stage: str) -> None:
        started[stage] = round(time.monotonic() - began, 2)

    ovn.prepare()
    central.prepare(said.append)
    mark("prepared")
    apis = central.api_programs()
    supervisor.configure([*ovn.programs(), *central.database_programs(), *apis])
    supervisor.start()
    central.initialise(said.append)
    mark("initialised")
    for program in apis:
        supervisor.start_program(program.name)
    central.wait_ready(60)
    mark("ready")
    print(f"control plane: {started}")
    return Plane(central, supervisor, netns, started)


@pytest.fixture(scope="session")
def home() -> Iterator[tuple[Path, str]]:
    """A folder with a short name and a network namespace."""
    root = Path(tempfile.mkdtemp(prefix="ot-", dir="/tmp"))
    netns = f"ot-{os.getpid()}-central"
    wires.add_namespace(netns)
    wires.ip("address", "add", f"{OOB_ADDRESS}/32", "dev", "lo", netns=netns)
    try:
        yield root, netns
    finally:
        for pid in wires.pids_in(netns):
            os.kill(pid, signal.SIGKILL)
        wires.delete_namespace(netns)
        shutil.rmtree(root)


@pytest.fixture(scope="session")
def plane(home: tuple[Path, str]) -> Iterator[Plane]:
    root, netns = home
    supervisor = Supervisor("dc", run=root / "run", state=root)
    try:
        yield start(root, netns, [])
    finally:
        supervisor.stop()
