"""What is on the emulated board's PCIe bus, read from and changed in QEMU itself.

Names in QEMU, from which everything is found again (QEMU is the only state):

    device      pf0vf3          a NIC function (virtio-net-pci), by its representor's name
                disk-<id>       a disk (nvme)
    netdev, fd  n-pf0vf3        the tap behind a NIC
    block node  d-<hash of id>  the NBD client behind a disk (QEMU bounds node names to 31 characters)
    object      unplug.<device> a mark that we have asked the host to release the device: QEMU has no property for it
    slot        slotN           a pcie-root-port
"""

import asyncio
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from opendpu.card.card import DiskCounters, NbdBackend
from opendpu.card.emulated.tap import is_representor
from opendpu.errors import UnavailableError
from opendpu.qmp import CommandError, CommandNotFoundError

# While the storage daemon is away the host must stall, not see I/O errors, which an OS answers by a read-only remount.
NBD_RECONNECT_S = 3600

_SLOT = re.compile(r"/machine/peripheral/slot(\d+)/")
_CHILD = re.compile(r"child<(.+)>")
_DISK = "disk-"
_NODE = "d-"
_MARK = "unplug."
_OFF = frozenset({"prelaunch", "shutdown", "inmigrate", "postmigrate"})


class Commander(Protocol):
    """The part of a QMP connection that the bus needs."""

    async def execute_now(self, command: str, arguments: Mapping[str, object] | None = None) -> Any: ...

    async def send_fd(self, fd: int, fdname: str) -> None: ...


@dataclass(frozen=True, slots=True)
class NicDevice:
    name: str
    slot: int
    mac: str
    mtu: int
    unplugging: bool


@dataclass(frozen=True, slots=True)
class DiskDevice:
    id: str
    slot: int
    serial: str
    node: str
    unplugging: bool


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The bus at one moment. `slots` are the board's slots; `taken` those with any device in them."""

    nics: dict[str, NicDevice] = field(default_factory=dict)
    disks: dict[str, DiskDevice] = field(default_factory=dict)
    slots: frozenset[int] = frozenset()
    taken: frozenset[int] = frozenset()
    marks: frozenset[str] = frozenset()


def disk_device(disk_id: str) -> str:
    return _DISK + disk_id


def disk_id(device: str) -> str | None:
    """The disk's id if the device is one."""
    return device.removeprefix(_DISK) if device.startswith(_DISK) else None


def node_name(disk_id: str) -> str:
    return _NODE + hashlib.sha256(disk_id.encode()).hexdigest()[:24]


class Bus:
    """Reads and changes the bus; knows nothing of limits or policy. Not safe for concurrent changes: lock outside."""

    def __init__(self, qmp: Commander) -> None:
        self._qmp = qmp

    async def powered(self) -> bool:
        status = await self._qmp.execute_now("query-status")
        return status["status"] not in _OFF

    async def snapshot(self) -> Snapshot:
        devices = await self._children("/machine/peripheral")
        marks = {name.removeprefix(_MARK) for name in await self._children("/objects") if name.startswith(_MARK)}
        ports = {name for name, kind in devices.items() if kind == "pcie-root-port"}
        others = [(name, kind) for name, kind in devices.items() if name not in ports]
        found = await asyncio.gather(*(self._device(name, kind, name in marks) for name, kind in others))
        return Snapshot(
            nics={nic.name: nic for _, nic in found if isinstance(nic, NicDevice)},
            disks={disk.id: disk for _, disk in found if isinstance(disk, DiskDevice)},
            slots=frozenset(int(name.removeprefix("slot")) for name in ports),
            taken=frozenset(slot for slot, _ in found if slot is not None),
            marks=frozenset(marks),
        )

    async def disk_counters(self) -> dict[str, DiskCounters]:
        counters = {}
        for backend in await self._qmp.execute_now("query-blockstats"):
            disk = disk_id(str(backend.get("qdev", "")))
            if disk is not None:
                stats = backend["stats"]
                counters[disk] = DiskCounters(int(stats["rd_bytes"]), int(stats["wr_bytes"]))
        return counters

    async def _device(self, name: str, kind: str, marked: bool) -> tuple[int | None, NicDevice | DiskDevice | None]:
        path = f"/machine/peripheral/{name}"
        try:
            match = _SLOT.match(str(await self._get(path, "parent_bus")))
            if match is None:
                return None, None
            slot = int(match[1])
            if kind == "virtio-net-pci" and is_representor(name):
                mac, mtu = await asyncio.gather(self._get(path, "mac"), self._get(path, "host_mtu"))
                return slot, NicDevice(name, slot, str(mac).lower(), int(mtu), marked)
            if kind == "nvme" and (id_ := disk_id(name)) is not None:
                serial, node = await asyncio.gather(self._get(path, "serial"), self._get(path, "drive"))
                return slot, DiskDevice(id_, slot, str(serial), str(node), marked)
        except CommandNotFoundError:
            return None, None  # released between the list and the look
        return slot, None

    async def read_only(self, node: str) -> bool:
        nodes = await self._qmp.execute_now("query-named-block-nodes", {"flat": True})
        return any(found["node-name"] == node and found["ro"] for found in nodes)

    async def add_nic(self, name: str, *, slot: int, mac: str, mtu: int, tap: int) -> None:
        backend = f"n-{name}"
        await self._qmp.send_fd(tap, backend)
        await self._qmp.execute_now("netdev_add", {"type": "tap", "id": backend, "fd": backend})
        device = {"driver": "virtio-net-pci", "id": name, "bus": f"slot{slot}", "netdev": backend, "mac": mac}
        # No option ROM: the host boots from its disk, never from the network by itself.
        await self._qmp.execute_now("device_add", {**device, "host_mtu": mtu, "romfile": ""})

    async def add_disk(self, id: str, backend: NbdBackend, *, slot: int, serial: str, read_only: bool) -> None:
        node = node_name(id)
        blockdev = {
            "driver": "nbd",
            "node-name": node,
            "server": {"type": "unix", "path": backend.socket},
            "export": backend.export,
            "reconnect-delay": NBD_RECONNECT_S,
            "read-only": read_only,
        }
        try:
            await self._qmp.execute_now("blockdev-add", blockdev)
        except CommandError as error:
            raise UnavailableError(
                f"disk {id}: the storage daemon does not serve export {backend.export!r} on {backend.socket}:"
                f" {error.desc}",
                reason="BackendUnavailable",
            ) from None
        # Firmware tries disks in the order of their slots. An index is the slot's number: never used twice.
        device = {"driver": "nvme", "id": disk_device(id), "bus": f"slot{slot}", "drive": node, "serial": serial}
        await self._qmp.execute_now("device_add", {**device, "bootindex": slot})

    async def mark(self, device: str) -> None:
        await self._qmp.execute_now("object-add", {"qom-type": "secret", "id": _MARK + device, "data": "asked"})

    async def ask_release(self, device: str) -> None:
        """Ask the host to let go of a device; DEVICE_DELETED follows. Asking again, or for none such, is no error."""
        try:
            await self._qmp.execute_now("device_del", {"id": device})
        except CommandNotFoundError:
            return
        except CommandError as error:
            if "in the process of unplug" not in error.desc:
                raise
        if not await self.powered():
            # Nobody runs who could answer. A reset completes the removals that wait.
            await self._qmp.execute_now("system_reset")

    async def sweep(self, snapshot: Snapshot, taps: set[str]) -> None:
        """Remove what has no device (any more): taps, block nodes and marks that a release or a dead agent left."""
        for name in taps - snapshot.nics.keys():
            await self.drop_nic_backend(name)
        used = {disk.node for disk in snapshot.disks.values()}
        for node in await self._qmp.execute_now("query-named-block-nodes", {"flat": True}):
            name = str(node["node-name"])
            if name.startswith(_NODE) and name not in used:
                await self._try("blockdev-del", {"node-name": name})
        devices = snapshot.nics.keys() | set(map(disk_device, snapshot.disks))
        for mark in snapshot.marks - devices:
            await self._try("object-del", {"id": _MARK + mark})

    async def drop_nic_backend(self, name: str) -> None:
        await self._try("netdev_del", {"id": f"n-{name}"})
        await self._try("closefd", {"fdname": f"n-{name}"})  # handed over, but not yet a netdev

    async def _try(self, command: str, arguments: Mapping[str, object]) -> None:
        try:
            await self._qmp.execute_now(command, arguments)
        except CommandError:
            return  # not there, which is what we want, or still in use: the next sweep's

    async def _children(self, path: str) -> dict[str, str]:
        entries = await self._qmp.execute_now("qom-list", {"path": path})
        return {str(e["name"]): match[1] for e in entries if (match := _CHILD.fullmatch(str(e["type"])))}

    async def _get(self, path: str, name: str) -> Any:
        return await self._qmp.execute_now("qom-get", {"path": path, "property": name})
