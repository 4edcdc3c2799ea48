"""Which cards the conformance suite runs against: each entry of CARDS makes a `CardUnderTest`."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from opendpu.card.card import Card, CardEvent, CardEventKind, CardLimits, NbdBackend
from opendpu.card.emulated.card import EmulatedCard
from opendpu.lab.power import BoardPower

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from rack import Rack, soc_namespace

LIMITS = CardLimits(pfs=1, vfs_per_pf=6, sfs_per_pf=2, slots=6, mtu_max=9000)


@dataclass
class CardUnderTest:
    """A card with its host off, no operating system on it, and two served blank volumes."""

    card: Card
    limits: CardLimits
    backends: list[NbdBackend]
    power_on: Callable[[], Awaitable[None]]
    power_off: Callable[[], Awaitable[None]]
    reopen: Callable[[], Awaitable[Card]]  # another process's view of the same card
    replace_host: Callable[[], Awaitable[None]]
    events: list[CardEvent] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def record(self, event: CardEvent) -> None:
        self.events.append(event)
        self.news.set()

    async def event(self, kind: CardEventKind, subject: str = "", timeout: float = 15) -> None:
        async with asyncio.timeout(timeout):
            while CardEvent(kind, subject) not in self.events:
                self.news.clear()
                await self.news.wait()


async def emulated() -> AsyncIterator[CardUnderTest]:
    rack = Rack(slots=LIMITS.slots)
    try:
        rack.start_board()
        rack.start_storage(rack.blank("vol-a"), rack.blank("vol-b"))
        with soc_namespace():
            power = BoardPower(qmp=rack.bmc_qmp, ram_file=rack.ram_file, console_log=rack.console_log)
            power.start()
            opened: list[Card] = []

            async def reopen() -> Card:
                for old in opened:
                    await old.close()
                card = EmulatedCard(bus=rack.card_qmp, model="test", serial="C1", limits=LIMITS)
                opened.append(card)
                await card.start()
                return card

            async def replace_host() -> None:
                rack.programs["board"].stop()
                await asyncio.to_thread(rack.start_board)

            try:
                under_test = CardUnderTest(
                    await reopen(),
                    LIMITS,
                    [NbdBackend(rack.nbd, "vol-a"), NbdBackend(rack.nbd, "vol-b")],
                    power.on,
                    power.off,
                    reopen,
                    replace_host,
                )
                under_test.card.subscribe(under_test.record)
                yield under_test
            finally:
                for card in opened:
                    await card.close()
                await power.close()
    finally:
        rack.close()


CARDS = {"emulated": emulated}


@pytest.fixture(params=CARDS)
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[CardUnderTest]:
    async for under_test in CARDS[request.param]():
        yield under_test
