"""NICs: from a Neutron port to a function of the card whose representor is in OVS."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from opendpu.agent import metrics, validate
from opendpu.agent.controller import RELEASE_TIMEOUT_S, Controller, Resource, Waiting, require_bus
from opendpu.agent.reconciler import Reconciler
from opendpu.agent.slots import Slots
from opendpu.agent.store import Store
from opendpu.agent.v1 import agent_pb2 as pb
from opendpu.card.card import Card, Function, FunctionId, HostPower
from opendpu.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    ResourceExhaustedError,
    UnavailableError,
)

if TYPE_CHECKING:
    from opendpu.network.binder import PortBinder, PortState

log = logging.getLogger(__name__)

Interface = Resource[pb.InterfaceSpec]


class Interfaces(Controller[pb.InterfaceSpec]):
    """An interface's `allocation` is its representor's name."""

    kind = "interface"

    def __init__(
        self,
        store: Store,
        reconciler: Reconciler,
        slots: Slots,
        deadline_s: float,
        *,
        card: Card,
        binder: "PortBinder",
    ) -> None:
        super().__init__(store, reconciler, slots, deadline_s)
        self._card = card
        self._binder = binder
        self._owners: dict[str, str] = {}  # representor -> id
        self._seen: dict[str, PortState] = {}  # representor -> as it was at the last look, without its counters
        self._healing: set[str] = set()  # representors of nobody, being taken from the host
        slots.add_user(lambda: len(self.resources))
        reconciler.register("unowned-functions", self._sweep)

    # ---- the API's side ----

    def checked(self, spec: pb.InterfaceSpec) -> pb.InterfaceSpec:
        return validate.interface(spec, self._slots.limits.mtu_max)

    async def messages(self, resources: Sequence[Interface]) -> list[pb.Interface]:
        ports = await self._ports()
        return [self._message(resource, ports.get(resource.allocation)) for resource in resources]

    async def _ports(self) -> "dict[str, PortState]":
        try:
            return await self._binder.ports()
        except UnavailableError:
            return {}  # health tells of it; the counters are missing until it is back

    def _message(self, resource: Interface, port: "PortState | None") -> pb.Interface:
        return pb.Interface(
            id=resource.id,
            generation=resource.generation,
            spec=resource.spec,
            status=resource.status.to_message(),
            representor=resource.allocation,
            slot=resource.slot,
            rx_packets=port.rx_packets if port else 0,
            tx_packets=port.tx_packets if port else 0,
        )

    # ---- events ----

    def wake_owner(self, representor: str) -> None:
        """Something changed at a representor."""
        if (owner := self._owners.get(representor)) is not None:
            self._reconciler.wake(self.kind, owner)

    def wake_sweep(self) -> None:
        self._reconciler.wake("unowned-functions", "")

    def look_at_port(self, representor: str, port: "PortState | None") -> None:
        """Wake the owner if this is new to us. Counters alone are not: OVS reports them every few seconds."""
        if port is None or self._seen.get(representor) != _without_counters(port):
            self.wake_owner(representor)

    # ---- the kind's part of the controller ----

    def _parse(self, raw: bytes) -> pb.InterfaceSpec:
        return pb.InterfaceSpec.FromString(raw)

    def _allocate(self, spec: pb.InterfaceSpec) -> str:
        for other in self.resources.values():
            if other.spec.mac == spec.mac:
                raise AlreadyExistsError(f"interface {other.id} has MAC {spec.mac} already", reason="DuplicateMac")
            if other.spec.port_id == spec.port_id:
                raise AlreadyExistsError(f"interface {other.id} is port {spec.port_id} already", reason="DuplicatePort")
        kind = validate.KINDS[spec.kind]
        all_ids = self._slots.limits.function_ids(kind)
        for function in all_ids:
            if function.representor not in self._owners and function.representor not in self._healing:
                self._slots.require()
                return function.representor
        raise ResourceExhaustedError(
            f"all {len(all_ids)} {kind.upper()}s of the card are taken; delete an interface or ask for another kind",
            reason="NoFreeFunction",
        )

    def _admitted(self, resource: Interface) -> None:
        self._owners[resource.allocation] = resource.id

    def _released(self, resource: Interface) -> None:
        del self._owners[resource.allocation]
        self._seen.pop(resource.allocation, None)

    async def _ensure(self, resource: Interface) -> None:
        await require_bus(self._card)
        spec, representor = resource.spec, resource.allocation
        await self._plug(resource, FunctionId.parse(representor))
        await self._binder.plug(representor, port_id=spec.port_id, mac=spec.mac, mtu=spec.mtu)
        port = (await self._binder.ports()).get(representor)
        self._reach(resource, "bound")
        if port is not None:
            self._seen[representor] = _without_counters(port)
        if port is None or not port.ready:
            problem = port.problem if port is not None else ""
            raise Waiting(
                "WaitingForOvn",
                f"OVS reports for {representor}: {problem}"
                if problem
                else f"ovn-controller has not installed the flows of port {spec.port_id}; is the port bound to this "
                "chassis in Neutron, and does ovn-controller reach the southbound database?",
            )
        self._reach(resource, "ovn-installed")

    async def _plug(self, resource: Interface, id: FunctionId) -> None:
        spec = resource.spec
        have = (await self._card.functions()).get(id)
        if have is not None and not have.unplugging and (have.mac, have.mtu) != (spec.mac, spec.mtu):
            log.warning("%s is in the host as %s, not as %s: taking it away first", id, have.mac, spec.mac)
            await self._replace(id)
        try:
            function = await self._card.plug_function(id, mac=spec.mac, mtu=spec.mtu)
        except FailedPreconditionError as error:
            if error.reason != "RepresentorLost":
                raise
            await self._replace(id)
            function = await self._card.plug_function(id, mac=spec.mac, mtu=spec.mtu)
        resource.slot = function.slot
        self._reach(resource, "function-plugged")

    async def _replace(self, id: FunctionId) -> None:
        await self._binder.unplug(id.representor)
        await self._card.unplug_function(id, timeout=RELEASE_TIMEOUT_S)

    async def _remove(self, resource: Interface) -> None:
        await self._binder.unplug(resource.allocation)
        self._releasing(resource)
        try:
            await self._card.unplug_function(FunctionId.parse(resource.allocation), timeout=RELEASE_TIMEOUT_S)
        except UnavailableError:
            if await self._card.host_power() is not HostPower.ABSENT:
                raise
            # No board, no function; should it still be there when the bus is back, the sweep takes it as nobody's.
            self._unseen.add(resource.id)

    async def _sweep(self, _: str) -> bool:
        """Take from the host and from OVS what is in no interface's name."""
        if await self._card.host_power() is HostPower.ABSENT:
            return True  # BUS_BACK wakes us again
        functions = await self._card.functions()
        settled = True
        for function in functions.values():
            settled &= await self._heal(function)
        for representor in await self._binder.ports():
            if representor not in self._owners and representor not in self._healing:
                await self._binder.unplug(representor)
        return settled

    async def _heal(self, function: Function) -> bool:
        name = function.representor
        # From here to the claim nothing waits: a Create in between can't be given this function.
        if name in self._owners:
            return True
        self._healing.add(name)
        try:
            log.warning("%s (%s) is in the host but in nobody's name: taking it away", name, function.mac)
            await self._binder.unplug(name)
            await self._card.unplug_function(function.id, timeout=RELEASE_TIMEOUT_S)
            metrics.LEAKS.labels(self.kind).inc()
        except Exception as error:
            log.warning("%s can't be taken away now: %s", name, error)
            return False
        finally:
            self._healing.discard(name)
        return True


def _without_counters(port: "PortState") -> "PortState":
    return replace(port, rx_packets=0, tx_packets=0)
