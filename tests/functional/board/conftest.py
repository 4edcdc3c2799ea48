"""A board with its card, its power, and the tiny Linux on a served disk."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from opendpu.card.card import CardLimits, NbdBackend
from opendpu.card.emulated.card import EmulatedCard
from opendpu.lab.image import build_image
from opendpu.lab.layout import Layout
from opendpu.lab.power import BoardPower

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))
from console import Console
from rack import Rack, soc_namespace


@pytest.fixture
def rack() -> Iterator[Rack]:
    made = Rack(slots=8, memory_mib=256)
    try:
        made.start_board()
        yield made
    finally:
        made.close()


@pytest.fixture
async def power(rack: Rack) -> AsyncIterator[BoardPower]:
    made = BoardPower(qmp=rack.bmc_qmp, ram_file=rack.ram_file, console_log=rack.console_log)
    made.start()
    yield made
    await made.close()


@pytest.fixture(scope="session")
def tiny_image() -> Path:
    return build_image("tiny", Layout.make().cache / "images", print)


@dataclass
class Server:
    rack: Rack
    card: EmulatedCard
    power: BoardPower

    def backend(self, name: str) -> NbdBackend:
        return NbdBackend(self.rack.nbd, name)

    async def boot(self) -> Console:
        await self.power.on()
        console = await Console.open(str(self.rack.folder / "run/console.sock"))
        await console.expect(b"READY up", timeout=120)
        await asyncio.sleep(0.5)  # the shell starts after the word
        await console.run("stty cols 2000")  # the shell breaks the echo of a longer line
        return console


@pytest.fixture
async def server(rack: Rack, power: BoardPower, tiny_image: Path) -> AsyncIterator[Server]:
    """Off, with the tiny Linux as its boot disk and a served 16 MiB volume `data`."""
    root = rack.folder / "root.raw"
    await asyncio.to_thread(subprocess.run, ["qemu-img", "convert", "-O", "raw", tiny_image, root], check=True)
    rack.images = [root, rack.blank("data")]
    await asyncio.to_thread(rack.start_storage, *rack.images)
    with soc_namespace():
        card = EmulatedCard(bus=rack.card_qmp, model="test", serial="C1", limits=CardLimits(slots=8))
        await card.start()
        try:
            await card.plug_disk("root", NbdBackend(rack.nbd, "root"), serial="ROOT", boot=True)
            yield Server(rack, card, power)
        finally:
            await card.close()
