"""The agent without its API: the parts of a card, joined by desired state and events."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from opendpu.agent import metrics
from opendpu.agent.controller import Controller, Resource
from opendpu.agent.disks import Disks
from opendpu.agent.interfaces import Interfaces
from opendpu.agent.reconciler import Reconciler
from opendpu.agent.server_state import ServerState
from opendpu.agent.slots import Slots
from opendpu.agent.store import Store
from opendpu.agent.v1 import agent_pb2 as pb
from opendpu.agent.volumes import Volumes
from opendpu.card.card import Card, CardEvent, CardEventKind

if TYPE_CHECKING:
    from opendpu.network.binder import PortBinder
    from opendpu.network.underlay import Underlay
    from opendpu.storage.attacher import VolumeAttacher

log = logging.getLogger(__name__)


class Agent:
    """Takes what the store says the host should have, and keeps the host so from `start` to `close`.

    The card, binder, attacher and underlay are started and closed here; closing leaves the host as it is.
    """

    interfaces: Interfaces
    disks: Disks
    volumes: Volumes
    server: ServerState

    def __init__(
        self,
        *,
        card: Card,
        binder: "PortBinder",
        attacher: "VolumeAttacher",
        underlay: "Underlay | None" = None,
        store: Store,
        interface_deadline_s: float = 60.0,
        disk_deadline_s: float = 60.0,
        retry_first_s: float = 0.2,
        retry_max_s: float = 30.0,
    ) -> None:
        self._card = card
        self._binder = binder
        self._attacher = attacher
        self._underlay = underlay
        self._store = store
        self._deadlines = (interface_deadline_s, disk_deadline_s)
        self._reconciler = Reconciler(retry_first_s=retry_first_s, retry_max_s=retry_max_s)

    async def start(self) -> None:
        """Take up the store's desired state and begin; does not wait for a host, OVS or the storage daemon."""
        info = await self._card.info()
        slots = Slots(info.limits)
        common = (self._store, self._reconciler, slots)
        self.interfaces = Interfaces(*common, self._deadlines[0], card=self._card, binder=self._binder)
        self.disks = Disks(*common, self._deadlines[1], card=self._card, attacher=self._attacher)
        self.volumes = Volumes(self._attacher, self.disks)
        self.server = ServerState(
            self._store,
            self._reconciler,
            card=self._card,
            info=info,
            binder=self._binder,
            disks=self.disks,
            health=self._health_checks(),
        )
        controllers: dict[str, Controller[pb.InterfaceSpec] | Controller[pb.DiskSpec]]
        controllers = {Interfaces.kind: self.interfaces, Disks.kind: self.disks}
        records = self._store.load()
        for record in records:
            controllers[record.kind].load(record)
        self._reconciler.register("port", self._look_at_port)
        self._measure()
        self._card.subscribe(self._on_card)
        self._binder.subscribe(self._on_port)
        self._attacher.subscribe(self._on_storage)
        await self._card.start()
        await self._attacher.start()
        await self._binder.start()
        if self._underlay is not None:
            await self._underlay.start()
        log.info("started with %d resources", len(records))
        self._look_at_all()

    async def close(self) -> None:
        """Finish writes and steps that were begun. NICs and disks stay in the host."""
        await self.interfaces.close()
        await self.disks.close()
        await self.server.close()
        await self._reconciler.close()
        if self._underlay is not None:
            await self._underlay.close()
        await self._binder.close()
        await self._attacher.close()
        await self._card.close()
        await self._store.close()

    @property
    def idle(self) -> bool:
        """Nothing is being done or waits to be tried again."""
        return self._reconciler.idle

    def _health_checks(self) -> Sequence[Callable[[], Awaitable[list[str]]]]:
        async def card() -> list[str]:
            return (await self._card.health()).problems

        checks: list[Callable[[], Awaitable[list[str]]]] = [card, self._attacher.health, self._binder.health]
        if self._underlay is not None:
            checks.append(self._underlay.health)
        return checks

    def _measure(self) -> None:
        for controller in (self.interfaces, self.disks):
            resources = controller.resources
            for name, state in pb.State.items():
                gauge = metrics.RESOURCES.labels(controller.kind, name.removeprefix("STATE_").lower())
                gauge.set_function(partial(_count, resources, state))

    # ---- events: each says only where to look ----

    def _look_at_all(self) -> None:
        self.interfaces.wake_all()
        self.interfaces.wake_sweep()
        self.disks.wake_all()
        self.disks.wake_sweep()
        self.server.wake()

    def _on_card(self, event: CardEvent) -> None:
        match event.kind:
            case CardEventKind.FUNCTION_GONE:
                self.interfaces.wake_owner(event.subject)
            case CardEventKind.DISK_GONE:
                self.disks.wake(event.subject)
            case _:
                self._look_at_all()

    def _on_port(self, representor: str) -> None:
        if representor:
            self._reconciler.wake("port", representor)
        else:
            self.interfaces.wake_all()
            self.interfaces.wake_sweep()
            self.server.wake()

    def _on_storage(self) -> None:
        self.disks.wake_all()
        self.disks.wake_sweep()
        self.server.wake()

    async def _look_at_port(self, representor: str) -> bool:
        port = (await self._binder.ports()).get(representor)
        if port is not None:
            self.server.saw_packets(representor, port.rx_packets)
        self.interfaces.look_at_port(representor, port)
        return True


def _count(resources: "Mapping[str, Resource[Any]]", state: int) -> float:
    # Called by the metrics thread: a copy, since the loop may be changing the dictionary.
    return sum(resource.status.state == state for resource in list(resources.values()))
