"""Plugging and unplugging under a running operating system, seen from inside it."""

import asyncio
import hashlib
import subprocess
import time
import urllib.request

import pytest

from opendpu.card.card import CardEvent, CardEventKind, FunctionId, FunctionKind
from opendpu.errors import DeadlineError

VF0 = FunctionId(0, FunctionKind.VF, 0)
VF1 = FunctionId(0, FunctionKind.VF, 1)
MAC0, MAC1 = "02:00:00:00:00:10", "02:00:00:00:00:11"


async def wait_in_guest(console, condition: str) -> float:
    """Seconds until a shell condition holds in the guest."""
    begin = time.monotonic()
    await console.run(
        f"n=0; until {condition}; do n=$((n+1)); [ $n -lt 200 ] || break; usleep 50000; done; {condition}"
    )
    return time.monotonic() - begin


def nic_of(mac: str) -> str:
    return f"$(basename $(dirname $(grep -l {mac} /sys/class/net/*/address)))"


async def test_nics_and_disks_come_and_go_without_a_reboot(server):
    await server.card.plug_function(VF0, mac=MAC0, mtu=1442)
    console = await server.boot()
    boot_id = await console.run("cat /proc/sys/kernel/random/boot_id")
    assert await console.run(f"cat /sys/class/net/{nic_of(MAC0)}/mtu") == "1442"

    await server.card.plug_function(VF1, mac=MAC1, mtu=1500)
    print("NIC seen after", await wait_in_guest(console, f"grep -q {MAC1} /sys/class/net/*/address"))
    await console.run(f"nic={nic_of(MAC1)}; ip addr add 192.0.2.2/24 dev $nic; ip link set $nic up")
    subprocess.run(["ip", "addr", "add", "192.0.2.1/24", "dev", VF1.representor], check=True)  # noqa: ASYNC221
    # This thread is in the SoC's namespace: no other thread may fetch.
    with urllib.request.urlopen("http://192.0.2.2/cgi-bin/hardware", timeout=20) as page:  # noqa: ASYNC210
        assert MAC1 in page.read().decode()

    await server.card.plug_disk("data", server.backend("data"), serial="DATA1")
    print("disk seen after", await wait_in_guest(console, "grep -q DATA1 /sys/block/*/device/serial"))
    disk = await console.run("basename $(dirname $(dirname $(grep -l DATA1 /sys/block/*/device/serial)))")
    await console.run(f"dd if=/dev/urandom of=/tmp/blob bs=1M count=4 && dd if=/tmp/blob of=/dev/{disk} bs=1M && sync")
    digest = (await console.run("sha256sum /tmp/blob")).split()[0]

    begin = time.monotonic()
    await server.card.unplug_disk("data", timeout=20)
    await server.card.unplug_function(VF1, timeout=20)
    print("both released after", time.monotonic() - begin)
    await wait_in_guest(console, f"! grep -q {MAC1} /sys/class/net/*/address")
    await wait_in_guest(console, "! grep -q DATA1 /sys/block/*/device/serial")
    assert set(await server.card.functions()) == {VF0}
    assert set(await server.card.disks()) == {"root"}

    await server.card.plug_disk("data-again", server.backend("data"), serial="DATA2", read_only=True)
    await wait_in_guest(console, "grep -q DATA2 /sys/block/*/device/serial")
    disk = await console.run("basename $(dirname $(dirname $(grep -l DATA2 /sys/block/*/device/serial)))")
    assert (await console.run(f"head -c 4194304 /dev/{disk} | sha256sum")).split()[0] == digest
    assert await console.run("cat /proc/sys/kernel/random/boot_id") == boot_id
    console.close()


async def test_the_guest_stalls_and_loses_nothing_while_the_storage_daemon_is_away(server):
    await server.card.plug_disk("data", server.backend("data"), serial="DATA1")
    console = await server.boot()
    await console.run("disk=/dev/$(basename $(dirname $(dirname $(grep -l DATA1 /sys/block/*/device/serial))))")
    await console.run("dd if=/dev/urandom of=/tmp/blob bs=1M count=8")
    await console.run(
        "{ (for n in 0 1 2 3 4 5 6 7; do dd if=/tmp/blob of=$disk bs=1M count=1 skip=$n seek=$n conv=fsync,notrunc"
        " || echo FAILED; usleep 200000; done; echo WRITTEN) > /tmp/log 2>&1 & }"
    )
    server.rack.programs["storage"].stop()
    await asyncio.sleep(1)
    assert "WRITTEN" not in await console.run("cat /tmp/log")
    await asyncio.to_thread(server.rack.start_storage, *server.rack.images)
    await wait_in_guest(console, "grep -q WRITTEN /tmp/log")
    assert "FAILED" not in await console.run("cat /tmp/log")
    digest = (await console.run("sha256sum /tmp/blob")).split()[0]
    await server.power.off()
    image = server.rack.folder / "data.raw"
    assert hashlib.sha256(image.read_bytes()[: 8 << 20]).hexdigest() == digest
    console.close()


async def test_a_release_asked_for_during_firmware_is_done_when_the_system_runs(server):
    events: list[CardEvent] = []
    server.card.subscribe(events.append)
    await server.card.plug_function(VF0, mac=MAC0, mtu=1500)
    await server.power.on()
    with pytest.raises(DeadlineError):
        await server.card.unplug_function(VF0, timeout=0.5)
    begin = time.monotonic()
    await server.card.unplug_function(VF0, timeout=90)
    print("released after", time.monotonic() - begin)
    assert CardEvent(CardEventKind.FUNCTION_GONE, VF0.representor) in events
    assert await server.card.functions() == {}


async def test_a_guest_that_switches_itself_off_is_off_and_its_memory_is_gone(server):
    console = await server.boot()
    assert not server.rack.memory_is_blank()
    await console.send("poweroff -f")
    async with asyncio.timeout(30):
        while not server.rack.memory_is_blank():  # noqa: ASYNC110  # the memory itself is what we look at
            await asyncio.sleep(0.2)
    assert not await server.power.is_on()
    console.close()
    console = await server.boot()
    await console.run("dmesg | grep -q 'Linux version'")
    console.close()
