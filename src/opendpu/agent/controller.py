"""What all kinds of resources have in common: durable desired state, and a status that says how far it is."""

import asyncio
import hashlib
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

from opendpu.agent import metrics
from opendpu.agent.log import request_id
from opendpu.agent.reconciler import Reconciler
from opendpu.agent.slots import Slots
from opendpu.agent.status import Status
from opendpu.agent.store import Record, Store
from opendpu.agent.v1 import agent_pb2 as pb
from opendpu.agent.watch import Hub
from opendpu.card.card import Card, HostPower
from opendpu.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OpenDPUError,
)
from opendpu.qmp import CommandError

log = logging.getLogger(__name__)

SpecT = TypeVar("SpecT", pb.InterfaceSpec, pb.DiskSpec)
T = TypeVar("T")

# How long one request to let a device go may take before it is repeated.
RELEASE_TIMEOUT_S = 10.0


class Waiting(Exception):  # noqa: N818 - not an error: an event will come
    """Nothing to do until an event comes that wakes the resource."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


async def require_bus(card: Card) -> None:
    """Raises Waiting while the card has no host's board to plug anything into."""
    if await card.host_power() is HostPower.ABSENT:
        raise Waiting("WaitingForBus", "the host's board does not answer on the card's bus; is it there and powered?")


@dataclass(slots=True)
class Resource(Generic[SpecT]):
    """`spec` is without secrets; `digest` is of the whole."""

    id: str
    spec: SpecT
    digest: bytes
    deadline_s: float
    allocation: str = ""
    request_id: str = ""
    generation: int = 1
    deleting: bool = False
    slot: int = -1
    status: Status = field(default_factory=Status)
    timer: asyncio.TimerHandle | None = None


class Controller(ABC, Generic[SpecT]):
    """Keeps the resources of one kind and makes the host so."""

    kind: ClassVar[str]

    def __init__(self, store: Store, reconciler: Reconciler, slots: Slots, deadline_s: float) -> None:
        self.deadline_s = deadline_s
        self.resources: dict[str, Resource[SpecT]] = {}
        self.hub = Hub()
        self._store = store
        self._reconciler = reconciler
        self._slots = slots
        self._writes: set[asyncio.Task[Any]] = set()
        self._unseen: set[str] = set()  # being deleted, and the bus was away when the hardware was to be asked
        reconciler.register(self.kind, self.reconcile)

    # ---- desired state ----

    def load(self, record: Record) -> None:
        """Take up a resource that the store kept over a restart."""
        spec = self._parse(record.spec)
        resource: Resource[SpecT] = Resource(
            id=record.id,
            spec=self._redacted(spec),
            digest=_digest(spec),
            deadline_s=record.deadline_s,
            allocation=record.allocation,
            request_id=record.request_id,
            generation=record.generation,
            deleting=record.deleting,
        )
        self.resources[record.id] = resource
        self._admitted(resource)
        if record.deleting:
            resource.status.state = pb.STATE_DELETING
        else:
            self._begin(resource)

    async def create(self, id: str, spec: SpecT, deadline_s: float) -> Resource[SpecT]:
        """Write down that the host should have this; done when it is on disk."""
        return await self._to_the_end(self._create(id, spec, deadline_s))

    async def delete(self, id: str) -> Resource[SpecT] | None:
        """Write down that the host should not have it any more. None: there is no such resource (any more)."""
        return await self._to_the_end(self._delete(id))

    def get(self, id: str) -> Resource[SpecT]:
        try:
            return self.resources[id]
        except KeyError:
            raise NotFoundError(f"there is no {self.kind} {id} here") from None

    def wake_all(self) -> None:
        for key in self.resources:
            self._reconciler.wake(self.kind, key)

    async def close(self) -> None:
        """Finish writes that were begun; forget timers and watchers."""
        if self._writes:
            await asyncio.wait(self._writes)
        self.hub.close()
        for resource in self.resources.values():
            _stop_timer(resource)

    async def _create(self, id: str, spec: SpecT, deadline_s: float) -> Resource[SpecT]:
        digest = _digest(spec)
        if id not in self.resources:
            await self._check(id, spec)
        async with self._slots.lock:
            existing = self.resources.get(id)
            if existing is not None:
                return self._again(existing, digest)
            allocation = self._allocate(spec)
            raw = spec.SerializeToString()
            cause = request_id.get()
            await self._store.add(Record(self.kind, id, 1, raw, False, allocation, cause, deadline_s))
            resource: Resource[SpecT] = Resource(
                id, self._redacted(spec), digest, deadline_s, allocation=allocation, request_id=cause
            )
            self.resources[id] = resource
            self._admitted(resource)
        self._begin(resource)
        resource.status.reach("accepted")
        self.hub.publish(id)
        self._reconciler.wake(self.kind, id)
        return resource

    def _again(self, resource: Resource[SpecT], digest: bytes) -> Resource[SpecT]:
        if resource.deleting:
            raise FailedPreconditionError(
                f"{self.kind} {resource.id} is being deleted; create it again when it is gone", reason="BeingDeleted"
            )
        if resource.digest != digest:
            raise AlreadyExistsError(
                f"{self.kind} {resource.id} exists with another specification; delete it first or take another id"
            )
        if resource.status.state == pb.STATE_FAILED:
            self._begin(resource)
            self.hub.publish(resource.id)
            self._reconciler.wake(self.kind, resource.id)
        return resource

    async def _delete(self, id: str) -> Resource[SpecT] | None:
        async with self._slots.lock:
            resource = self.resources.get(id)
            if resource is None:
                return None
            if not resource.deleting:
                cause = request_id.get() or resource.request_id
                await self._store.mark_deleting(self.kind, id, resource.generation + 1, cause)
                resource.generation += 1
                resource.deleting = True
                resource.request_id = cause
                _stop_timer(resource)
                self._set(resource, pb.STATE_DELETING, "", "")
        self._reconciler.wake(self.kind, id)
        return resource

    async def _to_the_end(self, work: Coroutine[Any, Any, T]) -> T:
        """A caller that goes away must not leave the store and the memory apart."""
        task = asyncio.create_task(work)
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)
        return await asyncio.shield(task)

    # ---- towards it ----

    async def reconcile(self, id: str) -> bool:
        """One step for one resource; True if only an event can bring it further."""
        resource = self.resources.get(id)
        if resource is None:
            await self._remove_orphan(id)
            self._unseen.discard(id)
            return True
        request_id.set(resource.request_id)
        with metrics.RECONCILE_SECONDS.labels(self.kind).time():
            return await (self._away(resource) if resource.deleting else self._there(resource))

    async def _there(self, resource: Resource[SpecT]) -> bool:
        try:
            await self._ensure(resource)
        except Waiting as wait:
            self._pending(resource, wait.reason, str(wait))
            return True
        except OpenDPUError as error:
            # What QEMU refuses in the words "not found" is a race with the hardware, not a wrong request.
            permanent = isinstance(error, InvalidArgumentError | NotFoundError) and not isinstance(error, CommandError)
            log.warning("%s %s: %s: %s", self.kind, resource.id, error.reason, error)
            self._pending(resource, error.reason, str(error), failed=permanent)
            return permanent
        except Exception as error:
            log.exception("%s %s", self.kind, resource.id)
            self._pending(resource, "Internal", f"{type(error).__name__}: {error}")
            return False
        if not resource.deleting:
            _stop_timer(resource)
            resource.status.deadline = None
            if resource.status.state != pb.STATE_READY:
                log.info("%s %s is ready", self.kind, resource.id)
            self._set(resource, pb.STATE_READY, "", "")
        return True

    async def _away(self, resource: Resource[SpecT]) -> bool:
        try:
            await self._remove(resource)
            await self._store.remove(self.kind, resource.id)
        except Waiting as wait:
            self._set(resource, pb.STATE_DELETING, wait.reason, str(wait))
            return True
        except OpenDPUError as error:
            log.warning("deleting %s %s: %s: %s", self.kind, resource.id, error.reason, error)
            self._set(resource, pb.STATE_DELETING, error.reason, str(error))
            return False
        except Exception as error:
            log.exception("deleting %s %s", self.kind, resource.id)
            self._set(resource, pb.STATE_DELETING, "Internal", f"{type(error).__name__}: {error}")
            return False
        del self.resources[resource.id]
        self._released(resource)
        if resource.id in self._unseen:
            # The bus may have come back while this was still somebody's, and the look around it brought found it owned.
            self._unseen.discard(resource.id)
            self.wake_sweep()
        log.info("%s %s is gone", self.kind, resource.id)
        self.hub.publish(resource.id)
        return True

    # ---- status ----

    def _begin(self, resource: Resource[SpecT]) -> None:
        """PENDING with a new deadline, which holds even while a step hangs."""
        _stop_timer(resource)
        resource.status.state = pb.STATE_PENDING
        resource.status.reason = resource.status.message = ""
        resource.status.deadline = time.time() + resource.deadline_s
        resource.timer = asyncio.get_running_loop().call_later(resource.deadline_s, self._expire, resource)

    def _expire(self, resource: Resource[SpecT]) -> None:
        status = resource.status
        resource.timer = None
        if status.state == pb.STATE_PENDING:
            text = status.message or "it was not looked at yet"
            self._set(
                resource,
                pb.STATE_FAILED,
                status.reason or "DeadlineExceeded",
                f"not ready within {resource.deadline_s:g} s: {text}",
            )
            log.warning("%s %s: %s", self.kind, resource.id, status.message)

    def _pending(self, resource: Resource[SpecT], reason: str, message: str, *, failed: bool = False) -> None:
        if resource.deleting:
            return
        if failed:
            _stop_timer(resource)
            self._set(resource, pb.STATE_FAILED, reason, message)
        elif resource.status.state == pb.STATE_FAILED:
            # Still tried, still failed: only READY, or the caller's new Create, ends that.
            self._set(resource, pb.STATE_FAILED, reason, message)
        else:
            if resource.status.state == pb.STATE_READY:
                self._begin(resource)
            self._set(resource, pb.STATE_PENDING, reason, message)

    def _set(self, resource: Resource[SpecT], state: "pb.State.ValueType", reason: str, message: str) -> None:
        status = resource.status
        new = (state, reason, message, resource.generation)
        if new != (status.state, status.reason, status.message, status.observed_generation):
            status.state, status.reason, status.message, status.observed_generation = new
            self.hub.publish(resource.id)

    def _reach(self, resource: Resource[SpecT], stage: str) -> None:
        resource.status.reach(stage)
        metrics.stage(self.kind, stage, resource.status.stages)

    def _releasing(self, resource: Resource[SpecT]) -> None:
        self._set(
            resource, pb.STATE_DELETING, "WaitingForHostRelease", "the host's operating system has yet to let it go"
        )

    # ---- what a kind does ----

    @abstractmethod
    def wake_sweep(self) -> None:
        """Look for what is in the hardware and in nobody's name."""

    @abstractmethod
    def _parse(self, raw: bytes) -> SpecT: ...

    def _redacted(self, spec: SpecT) -> SpecT:
        return spec

    async def _check(self, id: str, spec: SpecT) -> None:
        """Refuse what can't work, by asking others; for what needs no waiting there is `_allocate`."""

    @abstractmethod
    def _allocate(self, spec: SpecT) -> str:
        """Choose what of the hardware it gets, or refuse. Must not wait: the choice stands until it is stored."""

    def _admitted(self, resource: Resource[SpecT]) -> None:
        """It is among `resources` now."""

    def _released(self, resource: Resource[SpecT]) -> None:
        """It is no longer among `resources`."""

    @abstractmethod
    async def _ensure(self, resource: Resource[SpecT]) -> None:
        """Make it so; return when it is. Raises Waiting, or why not."""

    @abstractmethod
    async def _remove(self, resource: Resource[SpecT]) -> None:
        """Take it away; return when the host has let it go. Raises Waiting, or why not."""

    async def _remove_orphan(self, id: str) -> None:
        """Nobody wants `id`: make sure the hardware has nothing by that name."""


def _digest(spec: pb.InterfaceSpec | pb.DiskSpec) -> bytes:
    return hashlib.sha256(spec.SerializeToString(deterministic=True)).digest()


def _stop_timer(resource: Resource[Any]) -> None:
    if resource.timer is not None:
        resource.timer.cancel()
        resource.timer = None
