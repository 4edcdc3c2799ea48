"""Disks: from a volume or a config drive to a PCIe disk of the host."""

import asyncio
import hashlib
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from opendpu.agent import metrics, validate
from opendpu.agent.controller import RELEASE_TIMEOUT_S, Controller, Resource, require_bus
from opendpu.agent.reconciler import Reconciler
from opendpu.agent.slots import Slots
from opendpu.agent.store import Store
from opendpu.agent.v1 import agent_pb2 as pb
from opendpu.card.card import Card, DiskCounters, HostPower, NbdBackend
from opendpu.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    OpenDPUError,
    ResourceExhaustedError,
    UnavailableError,
)

if TYPE_CHECKING:
    from opendpu.storage.attacher import VolumeAttacher

log = logging.getLogger(__name__)

Disk = Resource[pb.DiskSpec]

_COUNTERS_TIMEOUT_S = 2.0


class Disks(Controller[pb.DiskSpec]):
    kind = "disk"

    def __init__(
        self,
        store: Store,
        reconciler: Reconciler,
        slots: Slots,
        deadline_s: float,
        *,
        card: Card,
        attacher: "VolumeAttacher",
    ) -> None:
        super().__init__(store, reconciler, slots, deadline_s)
        self._card = card
        self._attacher = attacher
        self._counters: dict[str, DiskCounters] = {}
        slots.add_user(lambda: sum(not disk.spec.boot for disk in self.resources.values()))
        reconciler.register("unowned-disks", self._sweep)

    # ---- the API's side ----

    def checked(self, id: str, spec: pb.DiskSpec) -> pb.DiskSpec:
        return validate.disk(id, spec, default_serial(id))

    async def messages(self, resources: Sequence[Disk]) -> list[pb.Disk]:
        """With counters asked of the card now; when it does not answer, the last ones known."""
        await self.read_counters()
        return [self.message(resource) for resource in resources]

    def message(self, resource: Disk) -> pb.Disk:
        counters = self._counters.get(resource.id)
        return pb.Disk(
            id=resource.id,
            generation=resource.generation,
            spec=resource.spec,
            status=resource.status.to_message(),
            slot=resource.slot,
            bytes_read=counters.bytes_read if counters else 0,
            bytes_written=counters.bytes_written if counters else 0,
        )

    async def read_counters(self) -> dict[str, DiskCounters]:
        try:
            async with asyncio.timeout(_COUNTERS_TIMEOUT_S):
                self._counters = await self._card.disk_counters()
        except (OpenDPUError, TimeoutError) as error:
            log.debug("the card gives no counters: %s", error)
        return self._counters

    def boot_disk(self) -> str:
        """The id of the disk that firmware boots; empty if there is none."""
        return next((disk.id for disk in self.resources.values() if disk.spec.boot and not disk.deleting), "")

    def user_of(self, volume_id: str) -> str:
        """The disk that is, or shall be, made of this volume; empty if none."""
        users = (disk.id for disk in self.resources.values() if disk.spec.volume_id == volume_id)
        return next(users, "")

    # ---- events ----

    def wake(self, id: str) -> None:
        self._reconciler.wake(self.kind, id)

    def wake_sweep(self) -> None:
        self._reconciler.wake("unowned-disks", "")

    # ---- the kind's part of the controller ----

    def _parse(self, raw: bytes) -> pb.DiskSpec:
        return pb.DiskSpec.FromString(raw)

    def _redacted(self, spec: pb.DiskSpec) -> pb.DiskSpec:
        result = pb.DiskSpec()
        result.CopyFrom(spec)
        if spec.WhichOneof("source") == "config_drive":
            result.config_drive = b""
        return result

    async def _check(self, id: str, spec: pb.DiskSpec) -> None:
        if spec.WhichOneof("source") != "volume_id":
            return
        volume = await self._attacher.volume(spec.volume_id)
        if volume.in_use_by not in ("", id):
            raise _in_use(spec.volume_id, volume.in_use_by)

    def _allocate(self, spec: pb.DiskSpec) -> str:
        for other in self.resources.values():
            if spec.volume_id and other.spec.volume_id == spec.volume_id:
                raise _in_use(spec.volume_id, f"disk {other.id}")
            if other.spec.serial == spec.serial:
                raise AlreadyExistsError(f"disk {other.id} has serial {spec.serial} already", reason="DuplicateSerial")
            if spec.boot and other.spec.boot:
                raise ResourceExhaustedError(
                    f"disk {other.id} is in the slot that firmware boots from; delete it first", reason="NoFreeSlot"
                )
        if not spec.boot:
            self._slots.require()
        return ""

    async def _ensure(self, resource: Disk) -> None:
        spec = resource.spec
        backend = await self._export(resource)
        self._reach(resource, "exported")
        await require_bus(self._card)
        have = (await self._card.disks()).get(resource.id)
        if have is not None and not have.unplugging and (have.serial, have.boot) != (spec.serial, spec.boot):
            log.warning("disk %s is in the host with serial %s: taking it away first", resource.id, have.serial)
            await self._card.unplug_disk(resource.id, timeout=RELEASE_TIMEOUT_S)
        disk = await self._card.plug_disk(
            resource.id, backend, serial=spec.serial, boot=spec.boot, read_only=spec.read_only
        )
        resource.slot = disk.slot
        self._reach(resource, "plugged")

    async def _export(self, resource: Disk) -> NbdBackend:
        try:
            return await self._serve(resource)
        except AlreadyExistsError as error:
            log.warning("disk %s: %s: starting over", resource.id, error)
            await self._remove_orphan(resource.id)
            return await self._serve(resource)

    async def _serve(self, resource: Disk) -> NbdBackend:
        spec = resource.spec
        if spec.WhichOneof("source") == "volume_id":
            return await self._attacher.export_volume(resource.id, spec.volume_id, read_only=spec.read_only)
        whole = self._parse(await self._store.spec(self.kind, resource.id))
        return await self._attacher.export_config_drive(resource.id, whole.config_drive)

    async def _remove(self, resource: Disk) -> None:
        self._releasing(resource)
        await self._remove_orphan(resource.id)

    def _released(self, resource: Disk) -> None:
        self._counters.pop(resource.id, None)

    async def _remove_orphan(self, id: str) -> None:
        try:
            await self._card.unplug_disk(id, timeout=RELEASE_TIMEOUT_S)
        except UnavailableError:
            if await self._card.host_power() is not HostPower.ABSENT:
                raise
            # No board, no disk; should it still be there when the bus is back, the sweep takes it as nobody's.
            self._unseen.add(id)
        await self._attacher.unexport(id)

    async def _sweep(self, _: str) -> bool:
        """Find disks and exports that are in nobody's name; their own key takes them away, one at a time per id."""
        found = set(await self._attacher.exports())
        if await self._card.host_power() is not HostPower.ABSENT:
            found |= set(await self._card.disks())
        for disk in found - set(self.resources):
            log.warning("disk %s is there but in nobody's name: taking it away", disk)
            metrics.LEAKS.labels(self.kind).inc()
            self.wake(disk)
        return True


def default_serial(id: str) -> str:
    """What the guest shows when the caller does not care: the id, or its start and a hash if it is longer than 20."""
    return id if len(id) <= 20 else f"{id[:11]}-{hashlib.sha256(id.encode()).hexdigest()[:8]}"


def _in_use(volume_id: str, user: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"volume {volume_id} is in use by {user}; delete that disk first", reason="VolumeInUse"
    )
