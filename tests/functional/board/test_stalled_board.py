"""Power over a board whose host waits for a storage daemon that is away, under the lab's own supervisor."""

import asyncio
import contextlib
import dataclasses
import hashlib
import sys
import time

import pytest

from opendpu.card.card import NbdBackend
from opendpu.errors import UnavailableError
from opendpu.lab.layout import Layout, Settings
from opendpu.lab.server import Server as LabServer
from opendpu.lab.supervisor import Supervisor


@pytest.fixture
async def supervisor(server):
    """The board as the lab runs it, in the place of the one that was started by hand."""
    rack = server.rack
    rack.programs.pop("board").stop()
    program = LabServer(Layout.make(), Settings(), 1).board_programs()[0]
    command = (sys.executable, "-m", "opendpu.lab.board", "--config", str(rack.config))
    made = Supervisor("board", run=rack.folder / "s", state=rack.folder / "s")
    made.configure([dataclasses.replace(program, command=command, netns="")])
    try:
        made.start()
        async with asyncio.timeout(20):
            while True:  # the power's session to the old board may be the one that answers first
                with contextlib.suppress(UnavailableError):
                    assert not await server.power.is_on()
                    break
        yield made
    finally:
        made.stop()


async def stall(server, console) -> None:
    """The storage daemon dies while the guest writes: QEMU holds requests that nobody answers."""
    write = "dd if=/dev/urandom of=$disk bs=64k seek=16 count=16 conv=fsync,notrunc 2>/dev/null"
    await console.send(f"while true; do {write}; done &")
    await asyncio.sleep(1)
    server.rack.programs["storage"].stop()
    await asyncio.sleep(1)


async def boot(server):
    await asyncio.wait_for(
        server.card.plug_disk("root", NbdBackend(server.rack.nbd, "root"), serial="R", boot=True), 20
    )
    await server.card.plug_disk("data", server.backend("data"), serial="DATA1")
    console = await server.boot()
    await console.run("disk=/dev/$(basename $(dirname $(dirname $(grep -l DATA1 /sys/block/*/device/serial))))")
    return console


async def test_power_off_and_stop_do_not_wait_for_storage_that_is_away(server, supervisor):
    console = await boot(server)
    await console.run("dd if=/dev/urandom of=/tmp/blob bs=1M count=1")
    await console.run("dd if=/tmp/blob of=$disk bs=1M count=1 conv=fsync,notrunc")
    digest = (await console.run("sha256sum /tmp/blob")).split()[0]
    await stall(server, console)
    console.close()

    begin = time.monotonic()
    await server.power.off()
    print(f"off after {time.monotonic() - begin:.1f} s")
    assert time.monotonic() - begin < 15
    assert not await server.power.is_on()
    assert server.rack.memory_is_blank()
    written = (server.rack.folder / "data.raw").read_bytes()[: 1 << 20]
    assert hashlib.sha256(written).hexdigest() == digest

    # The same host again, with all that was acknowledged; and now the rack is switched off instead.
    await asyncio.to_thread(server.rack.start_storage, *server.rack.images)
    console = await boot(server)
    assert (await console.run("head -c 1048576 $disk | sha256sum")).split()[0] == digest
    await stall(server, console)
    console.close()
    begin = time.monotonic()
    await asyncio.to_thread(supervisor.stop_program, "host1")
    print(f"ended after {time.monotonic() - begin:.1f} s")
    assert time.monotonic() - begin < 5
    assert supervisor.programs()["host1"] == ("STOPPED", 0)


async def test_a_guest_that_stalled_in_its_own_reset_is_switched_off(server, supervisor):
    """QEMU hangs in the reset before anybody asked for power off: it is on, and can be switched."""
    console = await boot(server)
    await stall(server, console)
    await console.send("echo b > /proc/sysrq-trigger")
    await asyncio.sleep(1)
    assert await server.power.is_on()
    await server.power.cycle()
    assert await server.power.is_on()
    await server.power.off()
    assert not await server.power.is_on()
    assert server.rack.memory_is_blank()
    console.close()
