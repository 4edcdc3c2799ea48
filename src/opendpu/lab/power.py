"""A board's power, boot device and UEFI variables, as its BMC switches them over QMP.

On is `system_reset` + `cont`: only the reset makes firmware see the boot order and the slots as they are now. Off is
`stop` + `system_reset` + a hole punched into the memory file: memory survives a reset, and must not survive a tenant.

QEMU drains its disks before it stops or resets. With a storage daemon that is away this takes until that is back, and
nothing else is answered meanwhile. Power must go all the same: such a board is cut, which is its process killed. Its
supervisor starts another, which is off, has fresh memory, and gets its NICs and disks from the card again.
"""

import asyncio
import ctypes
import logging
import os
import re
import signal
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from opendpu.errors import DeadlineError, InvalidArgumentError, OpenDPUError
from opendpu.qmp import QmpConnection

log = logging.getLogger(__name__)

_ON = frozenset({"running", "paused", "suspended", "guest-panicked", "io-error", "watchdog", "internal-error", "debug"})
_STEP_S = 20.0
# A board answers at once, also under load; longer than this only with a disk that does not.
_STALLED_S = 5.0
_PUNCH_AND_KEEP_SIZE = 3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE of linux/falloc.h
_SLOT = re.compile(r"/slot(\d+)/")
_NOT_PREFERRED = 100  # added to a slot's number: after all slots of the preferred kind


class BootDevice(StrEnum):
    """Redfish BootSource values that a board without media or its own NIC can have."""

    HDD = "Hdd"
    PXE = "Pxe"


class BoardPower:
    """All methods run in one event loop. `resets` are Redfish's ResetType values (DSP0268, Resource)."""

    def __init__(self, *, qmp: str, ram_file: Path, console_log: Path) -> None:
        self.boot_device = BootDevice.HDD
        self._socket = qmp
        self._ram_file = ram_file
        self._console_log = console_log
        self._switching = asyncio.Lock()
        self._reset_done = asyncio.Event()
        self._gone = asyncio.Event()
        self._on_after_shutdown = False
        self._fresh_variables = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._qmp = QmpConnection(
            qmp,
            name="board",
            on_event=self._on_event,
            on_connect=self._on_connect,
            on_disconnect=self._gone.set,
            timeout=_STEP_S,
        )
        self.resets: Mapping[str, Callable[[], Awaitable[None]]] = {
            "On": self.on,
            "ForceOn": self.on,
            "ForceOff": self.off,
            "ForceRestart": self.cycle,
            "PowerCycle": self.cycle,
            "GracefulShutdown": self.press_button,
            "GracefulRestart": self.graceful_restart,
            "PushPowerButton": self.push_button,
            "Nmi": self.nmi,
        }

    def start(self) -> None:
        self._qmp.start()

    async def close(self) -> None:
        await self._qmp.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def is_on(self) -> bool:
        try:
            return await self._status() in _ON
        except DeadlineError:
            return True  # only a host that runs has disks to wait for

    async def on(self) -> None:
        async with self._switching:
            self._on_after_shutdown = False
            if not await self.is_on():
                await self._on()

    async def off(self) -> None:
        async with self._switching:
            self._on_after_shutdown = False
            await self._off()

    async def cycle(self) -> None:
        async with self._switching:
            self._on_after_shutdown = False
            await self._off()
            await self._on()

    async def press_button(self) -> None:
        """Ask the operating system to shut down (ACPI power button); off follows if it does."""
        if await self.is_on():
            await self._qmp.execute("system_powerdown")

    async def push_button(self) -> None:
        await (self.press_button() if await self.is_on() else self.on())

    async def graceful_restart(self) -> None:
        self._on_after_shutdown = True
        await self.press_button()

    async def nmi(self) -> None:
        if await self.is_on():
            await self._qmp.execute("inject-nmi")

    async def reset_variables(self) -> None:
        """Give the board the UEFI variables it was built with: now when it is off, else at the next power-off."""
        async with self._switching:
            self._fresh_variables = True
            if not await self.is_on():
                await self._off()

    async def _on(self) -> None:
        await self._apply_boot_order()
        # The log is of this power-on, and no longer than one may make it (board.CONSOLE_LOG_MAX). QEMU appends to it.
        await asyncio.to_thread(os.truncate, self._console_log, 0)
        await self._reset()
        await self._qmp.execute("cont")

    async def _off(self) -> None:
        try:
            if await self._status() != "prelaunch":
                await self._execute("stop")
                await self._reset()
        except DeadlineError as error:
            log.warning("cutting the board's power: %s", error)
            await self._cut()
        await asyncio.to_thread(clear, self._ram_file)
        if self._fresh_variables:
            await self._replace_variables()

    async def _reset(self) -> None:
        self._reset_done.clear()
        await self._execute("system_reset")
        await _within(_STALLED_S, self._reset_done, "the board did not reset")

    async def _cut(self) -> None:
        self._gone.clear()
        await asyncio.to_thread(kill_server, self._socket)
        await _within(_STEP_S, self._gone, "the killed board did not end")
        await self._status()  # waits for the new one

    async def _replace_variables(self) -> None:
        # QEMU keeps the flash in its own memory, so a new one needs a new process; the supervisor starts it. The file
        # goes first: a board that finds none makes one from the template.
        for block in await self._qmp.execute("query-block"):
            if block["device"] == "pflash1":
                await asyncio.to_thread(Path(block["inserted"]["image"]["filename"]).unlink, missing_ok=True)
        self._gone.clear()
        await self._qmp.execute("quit")
        await _within(_STEP_S, self._gone, "the board did not quit")
        self._fresh_variables = False
        await self._status()  # waits for the new one

    async def _apply_boot_order(self) -> None:
        wanted = "child<nvme>" if self.boot_device is BootDevice.HDD else "child<virtio-net-pci>"
        for device in await self._qmp.execute("qom-list", {"path": "/machine/peripheral"}):
            if device["type"] not in {"child<nvme>", "child<virtio-net-pci>"}:
                continue
            path = f"/machine/peripheral/{device['name']}"
            bus = await self._qmp.execute("qom-get", {"path": path, "property": "parent_bus"})
            index = int(_SLOT.search(bus)[1])  # type: ignore[index]
            if device["type"] != wanted:
                # A NIC that nobody chose is not tried at all: a stranger's DHCP server must not boot this host.
                index = index + _NOT_PREFERRED if device["type"] == "child<nvme>" else -1
            bootindex = {"path": path, "property": "bootindex"}
            if await self._qmp.execute("qom-get", bootindex) != index:
                await self._qmp.execute("qom-set", {**bootindex, "value": index})

    async def _status(self) -> str:
        return str((await self._execute("query-status"))["status"])

    async def _execute(self, command: str) -> Any:
        """A command to a board that is there; DeadlineError when it is stalled."""
        await self._qmp.wait_connected()
        try:
            async with asyncio.timeout(_STALLED_S):
                return await self._qmp.execute_now(command)
        except TimeoutError:
            raise DeadlineError(f"the board gave no answer to {command} within {_STALLED_S:.0f} s") from None

    def _on_event(self, name: str, data: Mapping[str, Any]) -> None:
        if name == "RESET":
            self._reset_done.set()
        elif name == "SHUTDOWN" and data.get("guest"):
            self._spawn(self._after_shutdown())

    async def _on_connect(self) -> None:
        self._spawn(self._after_shutdown())

    async def _after_shutdown(self) -> None:
        """The host switched itself off, or we were not there to see it: make it a real power-off."""
        async with self._switching:
            if await self.is_on():
                return
            await self._off()
            if self._on_after_shutdown:
                self._on_after_shutdown = False
                await self._on()

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._spawned_done)

    def _spawned_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("switching the board off after its host did: %s", error)


async def _within(seconds: float, event: asyncio.Event, problem: str) -> None:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        raise DeadlineError(f"{problem} within {seconds:.0f} s") from None


def kill_server(path: str) -> None:
    """SIGKILL to the process that listens on a unix socket; the kernel knows which (SO_PEERCRED of unix(7))."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_STALLED_S)
        probe.connect(path)
        pid, _, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    os.kill(pid, signal.SIGKILL)


def clear(ram_file: Path) -> None:
    """Zero the memory file and give its pages back."""
    fd = os.open(ram_file, os.O_RDWR | os.O_CLOEXEC)
    try:
        size = ctypes.c_long(os.fstat(fd).st_size)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.fallocate(fd, _PUNCH_AND_KEEP_SIZE, ctypes.c_long(0), size) != 0:
            number = ctypes.get_errno()
            raise OpenDPUError(f"cannot clear the host's memory {ram_file}: {os.strerror(number)}")
    finally:
        os.close(fd)


def parse_boot_device(value: str) -> BootDevice:
    try:
        return BootDevice(value)
    except ValueError:
        raise InvalidArgumentError(f"boot device {value!r}: this board has {', '.join(BootDevice)}") from None
