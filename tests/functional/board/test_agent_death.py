"""An agent that dies between any two steps of a plug or an unplug leaves nothing that the next one does not heal."""

import contextlib
import socket

import pytest
from rack import soc_namespace

from opendpu.card.card import CardLimits, FunctionId, FunctionKind, NbdBackend
from opendpu.card.emulated.card import EmulatedCard
from opendpu.errors import DeadlineError

VF0 = FunctionId(0, FunctionKind.VF, 0)
MAC = "02:00:00:00:00:10"
READS = {"query-status", "qom-list", "qom-get", "query-named-block-nodes"}


class Died(BaseException):
    """The agent is no more: not an error that code could handle."""


def die_after(card: EmulatedCard, steps: int) -> None:
    """Let `steps` changing commands through to QEMU, then nothing more, cleaning up neither."""
    connection = card._qmp
    execute, send_fd = connection.execute_now, connection.send_fd
    left = [steps]

    def step() -> None:
        if left[0] <= 0:
            raise Died
        left[0] -= 1

    async def dying_execute(command, arguments=None):
        if command in READS and left[0] > 0:
            return await execute(command, arguments)
        if command != "getfd":
            step()
        return await execute(command, arguments)

    async def dying_send_fd(fd, fdname):
        step()
        await send_fd(fd, fdname)

    connection.execute_now, connection.send_fd = dying_execute, dying_send_fd


@pytest.fixture
async def cards(rack):
    rack.start_storage(rack.blank("data"))
    opened = []

    async def open_card() -> EmulatedCard:
        card = EmulatedCard(bus=rack.card_qmp, model="test", serial="C1", limits=CardLimits(slots=8))
        opened.append(card)
        await card.start()
        return card

    with soc_namespace():
        yield open_card
        for card in opened:
            await card.close()


# In the order of the commands: getfd, netdev_add, device_add; blockdev-add, device_add; mark, device_del, reset.
@pytest.mark.parametrize("steps", range(4))
async def test_death_while_plugging_a_nic(cards, steps):
    dying = await cards()
    await dying.functions()
    die_after(dying, steps)
    try:
        await dying.plug_function(VF0, mac=MAC, mtu=1500)
        completed = True
    except Died:
        completed = False
    assert completed is (steps >= 3)
    await dying.close()

    card = await cards()
    assert set(await card.functions()) == ({VF0} if completed else set())
    assert (VF0.representor in {name for _, name in socket.if_nameindex()}) is completed
    await card.plug_function(VF0, mac=MAC, mtu=1500)
    assert (await card.health()).ok


@pytest.mark.parametrize("steps", range(3))
async def test_death_while_plugging_a_disk(cards, rack, steps):
    backend = NbdBackend(rack.nbd, "data")
    dying = await cards()
    die_after(dying, steps)
    try:
        await dying.plug_disk("data", backend, serial="S")
        completed = True
    except Died:
        completed = False
    assert completed is (steps >= 2)
    await dying.close()

    card = await cards()
    assert set(await card.disks()) == ({"data"} if completed else set())
    await card.plug_disk("data", backend, serial="S")
    await card.unplug_disk("data", timeout=10)
    nodes = await card._qmp.execute_now("query-named-block-nodes", {"flat": True})
    assert not [node for node in nodes if node["node-name"].startswith("d-")]


@pytest.mark.parametrize("steps", range(4))
async def test_death_while_unplugging(cards, rack, steps):
    first = await cards()
    await first.plug_function(VF0, mac=MAC, mtu=1500)
    die_after(first, steps)
    with contextlib.suppress(Died, DeadlineError):
        await first.unplug_function(VF0, timeout=1)
    await first.close()

    card = await cards()
    await card.unplug_function(VF0, timeout=10)
    assert await card.functions() == {}
    assert VF0.representor not in {name for _, name in socket.if_nameindex()}
    assert (await card._bus.snapshot()).marks == frozenset()
    await card.plug_function(VF0, mac=MAC, mtu=1500)
