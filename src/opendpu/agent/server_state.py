"""The server as the card sees it: power, health and evidence that an operating system came up."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import opendpu
from opendpu.agent import metrics
from opendpu.agent.disks import Disks
from opendpu.agent.evidence import BootEvidence
from opendpu.agent.reconciler import Reconciler
from opendpu.agent.status import timestamp
from opendpu.agent.store import Store
from opendpu.agent.v1 import agent_pb2 as pb
from opendpu.agent.watch import Hub
from opendpu.card.card import Card, CardInfo, HostPower
from opendpu.errors import OpenDPUError

if TYPE_CHECKING:
    from opendpu.network.binder import PortBinder

log = logging.getLogger(__name__)

HealthCheck = Callable[[], Awaitable[list[str]]]

KEY = "server"
_NOTE = "boot-evidence"
_POLL_S = 1.0
# A host that sends nothing in this time has no network of ours; nothing more is learnt by asking.
_POLL_FOR_S = 1800.0
_CHECK_TIMEOUT_S = 2.0
_POWER = {HostPower.ON: pb.POWER_ON, HostPower.OFF: pb.POWER_OFF, HostPower.ABSENT: pb.POWER_ABSENT}


class ServerState:
    def __init__(
        self,
        store: Store,
        reconciler: Reconciler,
        *,
        card: Card,
        info: CardInfo,
        binder: "PortBinder",
        disks: Disks,
        health: Sequence[HealthCheck],
    ) -> None:
        self.hub = Hub()
        self._store = store
        self._reconciler = reconciler
        self._card = card
        self._info = info
        self._binder = binder
        self._disks = disks
        self._health = health
        self._power = HostPower.ABSENT
        self._problems: list[str] = ["not looked at yet"]
        self._remembered = store.read_note(_NOTE)
        self._evidence = BootEvidence.parse(self._remembered)
        self._looking = asyncio.Lock()
        self._poll: asyncio.Task[None] | None = None
        self._looked = asyncio.Event()
        reconciler.register(KEY, self._look)

    def wake(self) -> None:
        """Power or health may have changed: look."""
        self._reconciler.wake(KEY, "")

    def saw_packets(self, representor: str, rx_packets: int) -> None:
        """Called when a port's counters moved: O(1)."""
        if self._evidence.saw_packets(representor, rx_packets):
            log.info("first packet from the host, on %s", representor)
            self.hub.publish(KEY)
            self.wake()

    async def message(self) -> pb.Server:
        await self._looked.wait()
        info, limits, evidence = self._info, self._info.limits, self._evidence
        server = pb.Server(
            card_driver=info.driver,
            card_model=info.model,
            card_serial=info.serial,
            limits=pb.Limits(
                pfs=limits.pfs,
                vfs_per_pf=limits.vfs_per_pf,
                sfs_per_pf=limits.sfs_per_pf,
                slots=limits.slots,
                mtu_max=limits.mtu_max,
            ),
            power=_POWER[self._power],
            healthy=not self._problems,
            problems=self._problems,
            agent_version=opendpu.__version__,
            boot_disk_bytes_read=evidence.bytes_read,
            first_packet_seen=bool(evidence.first_packet),
            powered_on=timestamp(evidence.powered_on) if evidence.powered_on else None,
            first_disk_read=timestamp(evidence.first_disk_read) if evidence.first_disk_read else None,
            first_packet=timestamp(evidence.first_packet) if evidence.first_packet else None,
        )
        with contextlib.suppress(OpenDPUError, TimeoutError):  # health tells of it; the rest is still worth having
            async with asyncio.timeout(_CHECK_TIMEOUT_S):
                chassis = await self._binder.chassis()
            server.chassis = chassis.hostname
            server.chassis_id = chassis.system_id
            server.tunnel_address = chassis.tunnel_address
        return server

    async def refresh(self) -> pb.Server:
        """`message` after a look of our own: a caller who asks gets what is, not what was at the last event."""
        await self._look("")
        return await self.message()

    async def close(self) -> None:
        self.hub.close()
        if self._poll is not None:
            self._poll.cancel()
            await asyncio.gather(self._poll, return_exceptions=True)

    async def _look(self, _: str) -> bool:
        async with self._looking:
            power = await self._card.host_power()
            checks = await asyncio.gather(*(_checked(check) for check in self._health))
            problems = [problem for found in checks for problem in found]
            before, self._power = self._power, power
            # At our start the host may long be on: then what the store remembers of its power-on holds.
            remembered = not self._looked.is_set() and self._evidence.powered_on
            if power is HostPower.ON and before is not HostPower.ON and not remembered:
                reads = {disk: counters.bytes_read for disk, counters in (await self._disks.read_counters()).items()}
                self._evidence = BootEvidence.begin(await self._rx_packets(), reads)
                log.info("the host was powered on")
            if power is HostPower.ON and not self._evidence.first_packet and (self._poll is None or self._poll.done()):
                self._poll = asyncio.create_task(self._poll_boot_disk(), name="boot-evidence")
            for name, packets in (await self._rx_packets()).items():
                self.saw_packets(name, packets)
            if (power, problems) != (before, self._problems):
                self._problems = problems
                self.hub.publish(KEY)
            metrics.HEALTHY.set(not problems)
            self._looked.set()
            await self._remember()
            return not problems  # while something is wrong it is looked at again now and then

    async def _remember(self) -> None:
        text = self._evidence.dump()
        if text != self._remembered:
            await self._store.write_note(_NOTE, text)
            self._remembered = text

    async def _rx_packets(self) -> dict[str, int]:
        try:
            return {name: port.rx_packets for name, port in (await self._binder.ports()).items()}
        except OpenDPUError:
            return {}

    async def _poll_boot_disk(self) -> None:
        """Ask once a second, but only from power-on to the first packet: nothing is asked at rest."""
        evidence = self._evidence
        loop = asyncio.get_running_loop()
        end = loop.time() + _POLL_FOR_S
        while self._power is HostPower.ON and loop.time() < end and evidence is self._evidence:
            disk = self._disks.boot_disk()
            counters = (await self._disks.read_counters()).get(disk) if disk else None
            if counters is not None:
                first = not evidence.first_disk_read
                if evidence.saw_disk(disk, counters.bytes_read):
                    self.hub.publish(KEY)
                    if first:
                        self.wake()
            if evidence.first_packet:
                return
            await asyncio.sleep(_POLL_S)


async def _checked(check: HealthCheck) -> list[str]:
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT_S):
            return await check()
    except TimeoutError:
        return [f"a part gave no account of itself within {_CHECK_TIMEOUT_S:g} s"]
    except OpenDPUError as error:
        return [str(error)]
