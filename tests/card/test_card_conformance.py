"""What every card must do: the promises of opendpu.card.card, one by one, on a real card."""

import fcntl
import socket
import struct
from pathlib import Path

import pytest

from opendpu.card.card import CardEventKind, FunctionId, FunctionKind, HostPower, NbdBackend
from opendpu.errors import (
    AlreadyExistsError,
    DeadlineError,
    FailedPreconditionError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)

PF0 = FunctionId(0, FunctionKind.PF)
VF0 = FunctionId(0, FunctionKind.VF, 0)
VF1 = FunctionId(0, FunctionKind.VF, 1)
SF0 = FunctionId(0, FunctionKind.SF, 0)


def mac(number: int) -> str:
    return f"02:00:00:00:00:{number:02x}"


def interfaces() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


def representor_mtu(id: FunctionId) -> int:
    # /sys shows the namespace it was mounted in, not this thread's: ask the kernel.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        answer = fcntl.ioctl(control, 0x8921, struct.pack("16s24x", id.representor.encode()))  # SIOCGIFMTU
    return struct.unpack("16si20x", answer)[1]


def ipv6_addresses() -> str:
    return Path("/proc/thread-self/net/if_inet6").read_text()


async def test_a_new_card_is_well_and_empty(bench):
    info = await bench.card.info()
    assert info.limits == bench.limits
    assert (await bench.card.health()).ok
    assert await bench.card.host_power() is HostPower.OFF
    assert await bench.card.functions() == {}
    assert await bench.card.disks() == {}


@pytest.mark.parametrize("id", [PF0, VF0, SF0], ids=str)
async def test_function_is_plugged_seen_and_unplugged_while_off(bench, id):
    plugged = await bench.card.plug_function(id, mac=mac(1), mtu=8000)
    assert (plugged.id, plugged.mac, plugged.mtu, plugged.unplugging) == (id, mac(1), 8000, False)
    assert await bench.card.functions() == {id: plugged}
    assert representor_mtu(id) == 8000
    assert id.representor in interfaces()
    assert id.representor not in ipv6_addresses(), "the SoC's stack has an address on the tenant's cable"

    await bench.card.unplug_function(id, timeout=10)
    assert await bench.card.functions() == {}
    assert id.representor not in interfaces()
    await bench.event(CardEventKind.FUNCTION_GONE, id.representor)


async def test_plugging_again_changes_nothing_and_another_spec_is_refused(bench):
    first = await bench.card.plug_function(VF0, mac=mac(1), mtu=1500)
    assert await bench.card.plug_function(VF0, mac=mac(1).upper(), mtu=1500) == first
    with pytest.raises(AlreadyExistsError):
        await bench.card.plug_function(VF0, mac=mac(2), mtu=1500)
    with pytest.raises(AlreadyExistsError) as refused:
        await bench.card.plug_function(VF1, mac=mac(1), mtu=1500)
    assert refused.value.reason == "DuplicateMac"
    assert await bench.card.functions() == {VF0: first}
    assert VF1.representor not in interfaces()


async def test_unplugging_what_is_not_there_is_nothing(bench):
    await bench.card.unplug_function(VF0, timeout=1)
    await bench.card.unplug_disk("none", timeout=1)


@pytest.mark.parametrize(
    ("address", "mtu"),
    [
        *[(bad, 1500) for bad in ("", "02:00:00:00:00", "01:00:00:00:00:01", "02:00:00:00:00:01,x=y")],
        *[("00:00:00:00:00:00", 1500), (mac(1), 67), (mac(1), 9001), (mac(1), -1)],
    ],
)
async def test_bad_function_settings_are_refused(bench, address, mtu):
    with pytest.raises(InvalidArgumentError):
        await bench.card.plug_function(VF0, mac=address, mtu=mtu)
    assert await bench.card.functions() == {}


async def test_limits_are_the_hardware_s(bench):
    too_many = FunctionId(0, FunctionKind.VF, bench.limits.vfs_per_pf)
    with pytest.raises(ResourceExhaustedError):
        await bench.card.plug_function(too_many, mac=mac(1), mtu=1500)
    # Slot 0 is the boot disk's: one slot less for all else.
    for index in range(bench.limits.slots - 1):
        await bench.card.plug_function(FunctionId(0, FunctionKind.VF, index), mac=mac(index), mtu=1500)
    with pytest.raises(ResourceExhaustedError) as full:
        await bench.card.plug_function(SF0, mac=mac(99), mtu=1500)
    assert full.value.reason == "NoFreeSlot"
    with pytest.raises(ResourceExhaustedError):
        await bench.card.plug_disk("data", bench.backends[0], serial="S")
    boot = await bench.card.plug_disk("boot", bench.backends[0], serial="S", boot=True)
    assert (boot.slot, boot.boot) == (0, True)
    with pytest.raises(ResourceExhaustedError):
        await bench.card.plug_disk("boot2", bench.backends[1], serial="S", boot=True)
    assert SF0.representor not in interfaces()


async def test_disk_is_plugged_seen_and_unplugged_while_off(bench):
    name = "a" * 48  # the longest
    disk = await bench.card.plug_disk(name, bench.backends[0], serial="0123456789abcdefghij")
    assert await bench.card.disks() == {name: disk}
    assert disk.slot > 0
    assert await bench.card.plug_disk(name, bench.backends[0], serial=disk.serial) == disk
    with pytest.raises(AlreadyExistsError):
        await bench.card.plug_disk(name, bench.backends[0], serial="other")
    with pytest.raises(AlreadyExistsError):
        await bench.card.plug_disk(name, bench.backends[0], serial=disk.serial, read_only=True)
    await bench.card.unplug_disk(name, timeout=10)
    assert await bench.card.disks() == {}
    await bench.event(CardEventKind.DISK_GONE, name)
    again = await bench.card.plug_disk(name, bench.backends[0], serial="other", read_only=True)
    assert await bench.card.plug_disk(name, bench.backends[0], serial="other", read_only=True) == again


@pytest.mark.parametrize(
    ("id", "serial"), [("", "S"), ("A", "S"), ("a" * 49, "S"), ("a,b", "S"), ("a", ""), ("a", "s" * 21), ("a", "é")]
)
async def test_bad_disk_settings_are_refused(bench, id, serial):
    with pytest.raises(InvalidArgumentError):
        await bench.card.plug_disk(id, bench.backends[0], serial=serial)


async def test_a_backend_that_is_not_served_leaves_nothing(bench):
    missing = NbdBackend(bench.backends[0].socket, "no-such-export")
    with pytest.raises(UnavailableError) as refused:
        await bench.card.plug_disk("data", missing, serial="S")
    assert "no-such-export" in str(refused.value)
    assert await bench.card.disks() == {}
    await bench.card.plug_disk("data", bench.backends[0], serial="S")


async def test_physical_functions_need_the_host_off(bench):
    await bench.card.plug_function(PF0, mac=mac(1), mtu=1500)
    await bench.power_on()
    await bench.event(CardEventKind.HOST_POWER)
    assert await bench.card.host_power() is HostPower.ON
    with pytest.raises(FailedPreconditionError):
        await bench.card.unplug_function(PF0, timeout=1)
    assert PF0 in await bench.card.functions()
    await bench.power_off()
    assert await bench.card.host_power() is HostPower.OFF
    await bench.card.unplug_function(PF0, timeout=10)
    await bench.power_on()
    with pytest.raises(FailedPreconditionError):
        await bench.card.plug_function(PF0, mac=mac(1), mtu=1500)


async def test_a_host_that_does_not_answer_keeps_the_device_until_its_power_is_cut(bench):
    await bench.card.plug_function(VF0, mac=mac(1), mtu=1500)
    await bench.card.plug_disk("data", bench.backends[0], serial="S")
    await bench.power_on()
    plugged_hot = await bench.card.plug_function(VF1, mac=mac(2), mtu=1500)
    assert not plugged_hot.unplugging
    with pytest.raises(DeadlineError) as late:
        await bench.card.unplug_function(VF0, timeout=0.2)
    assert late.value.reason == "WaitingForHostRelease"
    with pytest.raises(DeadlineError):
        await bench.card.unplug_disk("data", timeout=0.2)
    assert (await bench.card.functions())[VF0].unplugging
    assert (await bench.card.disks())["data"].unplugging
    with pytest.raises(AlreadyExistsError) as busy:
        await bench.card.plug_function(VF0, mac=mac(1), mtu=1500)
    assert busy.value.reason == "Unplugging"

    card = await bench.reopen()  # an agent that starts anew knows what was asked
    card.subscribe(bench.record)
    assert (await card.functions())[VF0].unplugging
    await bench.power_off()
    await bench.event(CardEventKind.FUNCTION_GONE, VF0.representor)
    await bench.event(CardEventKind.DISK_GONE, "data")
    assert set(await card.functions()) == {VF1}
    assert VF0.representor not in interfaces()
    assert (await card.plug_disk("data", bench.backends[0], serial="S")).id == "data"


async def test_everything_is_seen_by_a_new_process(bench):
    function = await bench.card.plug_function(VF0, mac=mac(1), mtu=1400)
    boot = await bench.card.plug_disk("boot", bench.backends[0], serial="S1", boot=True)
    data = await bench.card.plug_disk("data", bench.backends[1], serial="S2")
    card = await bench.reopen()
    assert await card.functions() == {VF0: function}
    assert await card.disks() == {"boot": boot, "data": data}
    assert (await card.health()).ok


async def test_a_replaced_host_is_empty(bench):
    await bench.card.plug_function(VF0, mac=mac(1), mtu=1500)
    await bench.card.plug_disk("data", bench.backends[0], serial="S")
    bench.events.clear()
    await bench.replace_host()
    await bench.event(CardEventKind.BUS_LOST)
    await bench.event(CardEventKind.BUS_BACK)
    assert await bench.card.functions() == {}
    assert await bench.card.disks() == {}
    assert VF0.representor not in interfaces()
    await bench.card.plug_function(VF0, mac=mac(1), mtu=1500)
