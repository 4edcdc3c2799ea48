"""The emulated card: functions and disks of a QEMU machine, plugged over the machine's QMP socket.

The bus (QEMU) and the taps in this network namespace are the only state: a new object, or a new process, sees what is
plugged. Whatever an agent that died half-way left behind is swept away at the next connection, plug or release.
"""

import asyncio
import logging
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from opendpu.card.card import (
    Card,
    CardEvent,
    CardEventKind,
    CardHealth,
    CardInfo,
    CardLimits,
    Disk,
    DiskCounters,
    Function,
    FunctionId,
    FunctionKind,
    HostPower,
    NbdBackend,
)
from opendpu.card.emulated import tap
from opendpu.card.emulated.bus import Bus, DiskDevice, NicDevice, Snapshot, disk_device, disk_id
from opendpu.errors import (
    AlreadyExistsError,
    DeadlineError,
    FailedPreconditionError,
    InvalidArgumentError,
    OpenDPUError,
    ResourceExhaustedError,
    UnavailableError,
)
from opendpu.qmp import QmpConnection

log = logging.getLogger(__name__)

BOOT_SLOT = 0
MTU_MIN = 68  # bytes, RFC 791

_FIRST_CONNECT_S = 0.5
_STALLED_S = 2.0
# An OS that was still starting (or firmware) does not hear a request; QEMU never repeats it by itself.
_ASK_AGAIN_S = 2.0
_POWER_EVENTS = frozenset({"STOP", "RESUME", "RESET", "SHUTDOWN"})
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_DISK_ID = re.compile(r"[a-z0-9-]{1,48}")
_SERIAL = re.compile(r"[\x21-\x7e]([\x20-\x7e]{0,18}[\x21-\x7e])?")


class EmulatedCard(Card):
    """A card on the QMP socket `bus` of a board (opendpu.lab.board). See `Card` for what the methods promise."""

    def __init__(self, *, bus: str, model: str, serial: str, limits: CardLimits) -> None:
        self._info = CardInfo("emulated", model, serial, limits)
        self._limits = limits
        self._qmp = QmpConnection(
            bus,
            name="host bus",
            on_event=self._on_qmp_event,
            on_connect=self._on_connect,
            on_disconnect=self._on_disconnect,
        )
        self._bus = Bus(self._qmp)
        self._handlers: list[Callable[[CardEvent], None]] = []
        self._connected = asyncio.Event()
        self._changing = asyncio.Lock()
        # Per device that somebody waits for: True when released, False when the bus was lost.
        self._released: dict[str, asyncio.Future[bool]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._qmp.start()
        # A board that is there connects at once; one that is not is waited for in the background.
        await asyncio.wait({task := asyncio.create_task(self._connected.wait())}, timeout=_FIRST_CONNECT_S)
        task.cancel()

    async def close(self) -> None:
        await self._qmp.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def subscribe(self, handler: Callable[[CardEvent], None]) -> None:
        self._handlers.append(handler)

    async def info(self) -> CardInfo:
        return self._info

    async def health(self) -> CardHealth:
        try:
            functions = await self.functions()
        except OpenDPUError as error:
            return CardHealth(False, [f"the host's board does not answer: {error}"])
        lost = sorted(str(function) for function in functions if tap.tap_mtu(function.representor) is None)
        problems = [
            f"{name} is plugged but has no representor on the SoC; unplug it and plug it again" for name in lost
        ]
        return CardHealth(not problems, problems)

    async def host_power(self) -> HostPower:
        try:
            async with asyncio.timeout(_STALLED_S):
                return HostPower.ON if await self._bus.powered() else HostPower.OFF
        except TimeoutError:
            # QEMU says nothing while it waits for disks whose storage daemon is away; only a host that runs does.
            return HostPower.ON
        except UnavailableError:
            return HostPower.ABSENT

    async def functions(self) -> dict[FunctionId, Function]:
        nics = (await self._bus.snapshot()).nics.values()
        return {function.id: function for function in map(_function, nics)}

    async def plug_function(self, id: FunctionId, *, mac: str, mtu: int) -> Function:
        mac = self._check_function(id, mac, mtu)
        async with self._changing:
            before = await self._bus.snapshot()
            if (nic := before.nics.get(id.representor)) is not None:
                return self._same_function(nic, mac, mtu)
            for other in before.nics.values():
                if other.mac == mac:
                    raise AlreadyExistsError(
                        f"MAC {mac} is in use by {other.name} of this card; give {id} another", reason="DuplicateMac"
                    )
            await self._check_power(id)
            slot = self._free_slot(before, boot=False)
            await self._bus.sweep(before, tap.representors())
            fd = tap.open_tap(id.representor, mtu=mtu)
            try:
                await self._bus.add_nic(id.representor, slot=slot, mac=mac, mtu=mtu, tap=fd)
            except BaseException:
                await self._sweep_after_failure()
                raise
            finally:
                os.close(fd)
            return Function(id, mac, mtu, slot)

    async def unplug_function(self, id: FunctionId, *, timeout: float) -> None:
        snapshot = await self._bus.snapshot()
        if id.representor in snapshot.nics:
            await self._check_power(id)
        await self._unplug(id.representor, timeout)

    async def disks(self) -> dict[str, Disk]:
        devices = (await self._bus.snapshot()).disks.values()
        return {device.id: _disk(device) for device in devices}

    async def disk_counters(self) -> dict[str, DiskCounters]:
        return await self._bus.disk_counters()

    async def plug_disk(
        self, id: str, backend: NbdBackend, *, serial: str, boot: bool = False, read_only: bool = False
    ) -> Disk:
        _check_disk(id, serial)
        async with self._changing:
            before = await self._bus.snapshot()
            if (device := before.disks.get(id)) is not None:
                if device.unplugging:
                    raise _still_unplugging(f"disk {id}")
                disk = _disk(device)
                if (disk.serial, disk.boot) != (serial, boot) or await self._bus.read_only(device.node) != read_only:
                    raise AlreadyExistsError(f"disk {id} is plugged with another serial, boot or read-only setting")
                return disk
            slot = self._free_slot(before, boot=boot)
            await self._bus.sweep(before, tap.representors())
            try:
                await self._bus.add_disk(id, backend, slot=slot, serial=serial, read_only=read_only)
            except BaseException:
                await self._sweep_after_failure()
                raise
            return Disk(id, serial, slot, boot)

    async def unplug_disk(self, id: str, *, timeout: float) -> None:
        await self._unplug(disk_device(id), timeout)

    # ---- checks ----

    def _check_function(self, id: FunctionId, mac: str, mtu: int) -> str:
        mac = mac.lower()
        if _MAC.fullmatch(mac) is None or int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
            raise InvalidArgumentError(f"{mac!r} is no unicast MAC address; it looks like 02:00:00:12:34:56")
        if not MTU_MIN <= mtu <= self._limits.mtu_max:
            raise InvalidArgumentError(f"MTU {mtu} is not within {MTU_MIN} and {self._limits.mtu_max} bytes")
        if id not in self._limits.function_ids(id.kind):
            raise ResourceExhaustedError(f"the card has no function {id}", reason="NoSuchFunction")
        return mac

    def _same_function(self, nic: NicDevice, mac: str, mtu: int) -> Function:
        if nic.unplugging:
            raise _still_unplugging(nic.name)
        if (nic.mac, nic.mtu) != (mac, mtu):
            raise AlreadyExistsError(f"{nic.name} is plugged with MAC {nic.mac} and MTU {nic.mtu}; unplug it first")
        if tap.tap_mtu(nic.name) is None:
            raise FailedPreconditionError(
                f"{nic.name} is plugged but has no representor on the SoC; unplug it and plug it again",
                reason="RepresentorLost",
            )
        return _function(nic)

    async def _check_power(self, id: FunctionId) -> None:
        if id.kind is FunctionKind.PF and await self._bus.powered():
            raise FailedPreconditionError(
                f"{id} is a physical function: power the host off to change it", reason="HostPoweredOn"
            )

    def _free_slot(self, snapshot: Snapshot, *, boot: bool) -> int:
        mine = {slot for slot in snapshot.slots if slot < self._limits.slots and (slot == BOOT_SLOT) is boot}
        free = mine - snapshot.taken
        if not free:
            what = "the boot disk's slot is taken" if boot else f"all {len(mine)} slots for NICs and disks are taken"
            raise ResourceExhaustedError(f"{what}; unplug something first", reason="NoFreeSlot")
        return min(free)

    # ---- taking away ----

    async def _unplug(self, device: str, timeout: float) -> None:
        deadline = asyncio.get_running_loop().time() + timeout
        released = self._released.setdefault(device, asyncio.get_running_loop().create_future())
        while not released.done():
            async with self._changing:
                snapshot = await self._bus.snapshot()
                if device not in snapshot.nics and disk_id(device) not in snapshot.disks:
                    await self._bus.sweep(snapshot, tap.representors())
                    self._settle(device, True)
                    return
                if device not in snapshot.marks:
                    await self._bus.mark(device)
                await self._bus.ask_release(device)
            left = deadline - asyncio.get_running_loop().time()
            await asyncio.wait({released}, timeout=max(0.0, min(left, _ASK_AGAIN_S)))
            if left <= _ASK_AGAIN_S and not released.done():
                raise DeadlineError(
                    f"the host's operating system has not released {device} within {timeout:g} s; it is released when"
                    " it does, or at the next power cycle",
                    reason="WaitingForHostRelease",
                )
        if not released.result():
            raise UnavailableError(f"the host's board went away while {device} was being unplugged")

    def _settle(self, device: str, released: bool) -> None:
        future = self._released.pop(device, None)
        if future is not None and not future.done():
            future.set_result(released)

    async def _device_released(self, device: str) -> None:
        async with self._changing:
            await self._bus.sweep(await self._bus.snapshot(), tap.representors())
        self._settle(device, True)
        disk = disk_id(device)
        if disk is not None:
            self._emit(CardEvent(CardEventKind.DISK_GONE, disk))
        elif tap.is_representor(device):
            self._emit(CardEvent(CardEventKind.FUNCTION_GONE, device))

    async def _sweep_after_failure(self) -> None:
        try:
            await self._bus.sweep(await self._bus.snapshot(), tap.representors())
        except OpenDPUError as error:
            log.warning("what a failed plug left is swept away later: %s", error)

    # ---- events ----

    def _on_qmp_event(self, name: str, data: Mapping[str, Any]) -> None:
        if name in _POWER_EVENTS:
            self._emit(CardEvent(CardEventKind.HOST_POWER))
        elif name == "DEVICE_DELETED" and (device := data.get("device")):
            task = asyncio.create_task(self._device_released(str(device)))
            self._tasks.add(task)
            task.add_done_callback(self._released_done)

    def _released_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("cleaning up behind a released device: %s", error)

    async def _on_connect(self) -> None:
        async with self._changing:
            await self._bus.sweep(await self._bus.snapshot(), tap.representors())
        self._connected.set()
        self._emit(CardEvent(CardEventKind.BUS_BACK))

    def _on_disconnect(self) -> None:
        self._connected.clear()
        for device in list(self._released):
            self._settle(device, False)
        self._emit(CardEvent(CardEventKind.BUS_LOST))

    def _emit(self, event: CardEvent) -> None:
        for handler in self._handlers:
            try:
                handler(event)
            except Exception:
                log.exception("a handler of card event %s failed", event)


def _function(nic: NicDevice) -> Function:
    return Function(FunctionId.parse(nic.name), nic.mac, nic.mtu, nic.slot, nic.unplugging)


def _disk(device: DiskDevice) -> Disk:
    return Disk(device.id, device.serial, device.slot, device.slot == BOOT_SLOT, device.unplugging)


def _check_disk(id: str, serial: str) -> None:
    if _DISK_ID.fullmatch(id) is None:
        raise InvalidArgumentError(f"disk id {id!r}: use 1 to 48 of a-z, 0-9 and -")
    if _SERIAL.fullmatch(serial) is None:
        raise InvalidArgumentError(
            f"disk serial {serial!r}: use 1 to 20 printable ASCII characters with no space at the ends"
        )


def _still_unplugging(what: str) -> AlreadyExistsError:
    return AlreadyExistsError(f"{what} is still being unplugged; wait until the host released it", reason="Unplugging")
