"""In-memory neighbours of the agent: a card, a storage daemon and a switch that fail when told to."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest

from opendpu.agent.agent import Agent
from opendpu.agent.store import Store
from opendpu.card import card as c
from opendpu.errors import AlreadyExistsError, DeadlineError, NotFoundError, ResourceExhaustedError, UnavailableError
from opendpu.network.binder import Chassis, PortState

MAC = "52:54:00:00:00:01"
PORT = "11111111-1111-4111-8111-111111111111"


class FakeCard(c.Card):
    def __init__(self, limits: c.CardLimits) -> None:
        self.limits = limits
        self.nics: dict[c.FunctionId, c.Function] = {}
        self.held: dict[str, c.Disk] = {}
        self.power = c.HostPower.ON
        self.handlers = []
        self.fail: list[Exception] = []  # raised by the next calls that change something
        self.stubborn = False  # the host's OS does not release
        self.started = False
        self.read: dict[str, int] = {}

    async def start(self):
        self.started = True

    async def close(self):
        self.started = False
        self.handlers.clear()

    def subscribe(self, handler):
        self.handlers.append(handler)

    def emit(self, kind, subject=""):
        for handler in self.handlers:
            handler(c.CardEvent(kind, subject))

    async def info(self):
        return c.CardInfo("fake", "model", "SERIAL", self.limits)

    async def health(self):
        absent = self.power is c.HostPower.ABSENT
        return c.CardHealth(not absent, ["no board"] * absent)

    async def host_power(self):
        return self.power

    async def functions(self):
        self._bus()
        return dict(self.nics)

    async def disks(self):
        self._bus()
        return dict(self.held)

    async def plug_function(self, id, *, mac, mtu):
        self._change()
        if (have := self.nics.get(id)) is not None:
            if have.unplugging or (have.mac, have.mtu) != (mac, mtu):
                raise AlreadyExistsError("another")
            return have
        self.nics[id] = c.Function(id, mac, mtu, self._slot())
        return self.nics[id]

    async def unplug_function(self, id, *, timeout):
        self._change()
        if id in self.nics and self.stubborn:
            self.nics[id] = dataclasses.replace(self.nics[id], unplugging=True)
            raise DeadlineError("not released", reason="WaitingForHostRelease")
        self.nics.pop(id, None)

    async def disk_counters(self):
        self._bus()
        return {disk: c.DiskCounters(self.read.get(disk, 0), 0) for disk in self.held}

    async def plug_disk(self, id, backend, *, serial, boot=False, read_only=False):
        self._change()
        if (have := self.held.get(id)) is not None:
            if have.unplugging or have.serial != serial:
                raise AlreadyExistsError("another")
            return have
        self.held[id] = c.Disk(id, serial, 0 if boot else self._slot(), boot)
        return self.held[id]

    async def unplug_disk(self, id, *, timeout):
        self._change()
        self.held.pop(id, None)

    def _slot(self):
        taken = {each.slot for each in [*self.nics.values(), *self.held.values()]}
        free = [slot for slot in range(1, self.limits.slots) if slot not in taken]
        if not free:
            raise ResourceExhaustedError("no slot")
        return free[0]

    def _bus(self):
        if self.power is c.HostPower.ABSENT:
            raise UnavailableError("no bus")

    def _change(self):
        self._bus()
        if self.fail:
            raise self.fail.pop()


class FakeBinder:
    def __init__(self) -> None:
        self.table: dict[str, PortState] = {}
        self.handlers = []
        self.fail: list[Exception] = []
        self.ovn = True  # ovn-controller installs flows at once

    async def start(self): ...

    async def close(self):
        self.handlers.clear()

    def subscribe(self, handler):
        self.handlers.append(handler)

    def emit(self, representor):
        for handler in list(self.handlers):
            handler(representor)

    async def health(self):
        return []

    async def chassis(self):
        return Chassis("soc-1", "system-1", "172.31.0.1")

    async def ports(self):
        return dict(self.table)

    async def plug(self, representor, *, port_id, mac, mtu):
        if self.fail:
            raise self.fail.pop()
        have = self.table.get(representor)
        if have is None or (have.port_id, have.mac, have.mtu) != (port_id, mac, mtu):
            self.table[representor] = PortState(representor, port_id, mac, mtu, self.ovn, "", 0, 0)
            self.emit(representor)

    async def unplug(self, representor):
        if self.fail:
            raise self.fail.pop()
        if self.table.pop(representor, None):
            self.emit(representor)

    def change(self, representor, **values):
        self.table[representor] = dataclasses.replace(self.table[representor], **values)
        self.emit(representor)


class FakeAttacher:
    def __init__(self) -> None:
        self.pool: dict[str, SimpleNamespace] = {}
        self.served: dict[str, c.NbdBackend] = {}
        self.drives: dict[str, bytes] = {}
        self.handlers = []
        self.fail: list[Exception] = []

    async def start(self): ...

    async def close(self):
        self.handlers.clear()

    def subscribe(self, handler):
        self.handlers.append(handler)

    def restart(self):
        self.served.clear()
        for handler in list(self.handlers):
            handler()

    async def health(self):
        return []

    async def volume(self, id):
        if id not in self.pool:
            raise NotFoundError(f"no volume {id}", reason="VolumeNotFound")
        return self.pool[id]

    async def create_volume(self, id, *, image="", size_bytes=0):
        return self.pool.setdefault(
            id, SimpleNamespace(id=id, image=image, size_bytes=size_bytes, allocated_bytes=0, in_use_by="")
        )

    async def delete_volume(self, id):
        self.pool.pop(id, None)

    async def export_volume(self, disk_id, volume_id, *, read_only):
        if self.fail:
            raise self.fail.pop()
        await self.volume(volume_id)
        return self.served.setdefault(disk_id, c.NbdBackend("/nbd", disk_id))

    async def export_config_drive(self, disk_id, content):
        self.drives[disk_id] = content
        return self.served.setdefault(disk_id, c.NbdBackend("/nbd", disk_id))

    async def unexport(self, disk_id):
        if self.fail:
            raise self.fail.pop()
        self.served.pop(disk_id, None)
        self.drives.pop(disk_id, None)

    async def exports(self):
        return dict(self.served)


class World:
    """Neighbours that outlive the agent, as hardware and daemons do, and a store on a disk."""

    def __init__(self, path: Path, limits: c.CardLimits | None = None) -> None:
        self.path = path
        self.card = FakeCard(limits or c.CardLimits(pfs=1, vfs_per_pf=4, sfs_per_pf=2, slots=6))
        self.binder = FakeBinder()
        self.attacher = FakeAttacher()

    async def agent(self, **options) -> Agent:
        settings = {"interface_deadline_s": 5.0, "disk_deadline_s": 5.0, "retry_first_s": 0.002, "retry_max_s": 0.01}
        agent = Agent(
            card=self.card,
            binder=self.binder,
            attacher=self.attacher,
            store=Store(self.path / "agent.db"),
            **(settings | options),
        )
        await agent.start()
        return agent


@pytest.fixture
async def world(tmp_path):
    return World(tmp_path)


@pytest.fixture(scope="session")
def make_world():
    return World
