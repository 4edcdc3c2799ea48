"""The agent brings the host to its desired state, whatever fails on the way."""

import asyncio
import contextlib
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opendpu.agent.v1 import agent_pb2 as pb
from opendpu.card import card as c
from opendpu.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    NotFoundError,
    OpenDPUError,
    ResourceExhaustedError,
    UnavailableError,
)


def nic(number=1, **values):
    fields = {"port_id": f"11111111-1111-4111-8111-{number:012}", "mac": f"52:54:00:00:00:{number:02x}"}
    return pb.InterfaceSpec(**(fields | values))


async def create_nic(agent, id="n1", number=1, deadline=5.0, **values):
    return await agent.interfaces.create(id, agent.interfaces.checked(nic(number, **values)), deadline)


async def create_disk(agent, id="d1", volume="v1", **values):
    return await agent.disks.create(id, agent.disks.checked(id, pb.DiskSpec(volume_id=volume, **values)), 5.0)


async def until(condition, what, timeout=5.0):
    try:
        async with asyncio.timeout(timeout):
            while not condition():  # noqa: ASYNC110 - the state under test has no event for tests
                await asyncio.sleep(0.002)
    except TimeoutError:
        pytest.fail(f"not within {timeout} s: {what}")


async def test_interface_from_create_to_ready_to_gone(world):
    agent = await world.agent()
    resource = await create_nic(agent)
    assert resource.allocation == "pf0vf0"
    await until(lambda: resource.status.state == pb.STATE_READY, "ready")
    assert list(resource.status.stages) == ["accepted", "function-plugged", "bound", "ovn-installed"]
    assert world.binder.table["pf0vf0"].mac == "52:54:00:00:00:01"
    await agent.interfaces.delete("n1")
    await until(lambda: not agent.interfaces.resources, "gone")
    assert not world.card.nics
    assert not world.binder.table
    assert await agent.interfaces.delete("n1") is None
    await until(lambda: agent.idle, "at rest: no task, no timer")
    await agent.close()


async def test_create_is_idempotent_and_refuses_what_collides(world):
    agent = await world.agent()
    first = await create_nic(agent)
    assert await create_nic(agent) is first
    with pytest.raises(AlreadyExistsError):
        await create_nic(agent, mtu=9000)
    with pytest.raises(AlreadyExistsError) as caught:
        await create_nic(agent, "n2", 2, mac="52:54:00:00:00:01")
    assert caught.value.reason == "DuplicateMac"
    for number in (2, 3, 4):
        await create_nic(agent, f"n{number}", number)
    with pytest.raises(ResourceExhaustedError) as caught:
        await create_nic(agent, "n5", 5)
    assert caught.value.reason == "NoFreeFunction"
    assert len(agent.interfaces.resources) == len(agent._store.load()) == 4
    await create_nic(agent, "n6", 6, kind=pb.FUNCTION_KIND_SF)
    with pytest.raises(ResourceExhaustedError) as caught:
        await create_nic(agent, "n7", 7, kind=pb.FUNCTION_KIND_SF)
    assert caught.value.reason == "NoFreeSlot"
    await agent.close()


async def test_waiting_for_ovn_fails_at_the_deadline_and_heals_by_an_event(world):
    world.binder.ovn = False
    agent = await world.agent()
    resource = await create_nic(agent, deadline=0.15)
    await until(lambda: resource.status.reason == "WaitingForOvn", "says what it waits for")
    assert resource.status.state == pb.STATE_PENDING
    await until(lambda: resource.status.state == pb.STATE_FAILED, "failed at the deadline")
    assert resource.status.reason == "WaitingForOvn"
    world.binder.change("pf0vf0", ready=True)
    await until(lambda: resource.status.state == pb.STATE_READY, "ready after the event")
    await agent.close()


async def test_counters_alone_wake_no_interface(world):
    agent = await world.agent()
    resource = await create_nic(agent)
    await until(lambda: resource.status.state == pb.STATE_READY and agent.idle, "ready")
    looks = []
    original = world.card.functions
    world.card.functions = lambda: looks.append(1) or original()
    for packets in range(1, 50):
        world.binder.change("pf0vf0", rx_packets=packets)
    await asyncio.sleep(0.05)
    await until(lambda: agent.idle, "at rest")
    assert not looks
    await agent.close()


async def test_a_host_that_does_not_release_holds_the_function(world):
    agent = await world.agent()
    resource = await create_nic(agent)
    await until(lambda: resource.status.state == pb.STATE_READY, "ready")
    world.card.stubborn = True
    await agent.interfaces.delete("n1")
    await until(lambda: resource.status.reason == "WaitingForHostRelease", "says what it waits for")
    assert "pf0vf0" not in world.binder.table, "its traffic stops at once"
    assert (await create_nic(agent, "n2", 2)).allocation == "pf0vf1"
    with pytest.raises(FailedPreconditionError):
        await create_nic(agent)
    world.card.stubborn = False
    world.card.emit(c.CardEventKind.FUNCTION_GONE, "pf0vf0")
    await until(lambda: "n1" not in agent.interfaces.resources, "gone")
    await agent.close()


async def test_what_nobody_owns_is_taken_away_at_start(world):
    leak = c.FunctionId(0, c.FunctionKind.VF, 2)
    world.card.nics[leak] = c.Function(leak, "52:54:00:00:00:99", 1500, 3)
    await world.binder.plug("pf0vf3", port_id="x", mac="52:54:00:00:00:98", mtu=1500)
    world.card.held["stray"] = c.Disk("stray", "S", 4)
    world.attacher.served["stray"] = c.NbdBackend("/nbd", "stray")
    agent = await world.agent()
    await until(lambda: not (world.card.nics or world.binder.table or world.card.held), "swept")
    await until(lambda: not world.attacher.served, "unexported")
    await agent.close()


async def test_disk_lifecycle_and_storage_restart(world):
    agent = await world.agent()
    with pytest.raises(NotFoundError):
        await create_disk(agent)
    await world.attacher.create_volume("v1", size_bytes=512)
    disk = await create_disk(agent, boot=True)
    await until(lambda: disk.status.state == pb.STATE_READY, "ready")
    assert list(disk.status.stages) == ["accepted", "exported", "plugged"]
    with pytest.raises(FailedPreconditionError) as caught:
        await create_disk(agent, "d2")
    assert caught.value.reason == "VolumeInUse"
    with pytest.raises(FailedPreconditionError):
        await agent.volumes.delete("v1")
    world.attacher.restart()
    await until(lambda: "d1" in world.attacher.served, "exported again")
    await agent.disks.delete("d1")
    await until(lambda: not agent.disks.resources, "gone")
    assert not world.card.held
    assert not world.attacher.served
    await agent.volumes.delete("v1")
    await agent.close()


async def test_config_drive_is_on_disk_but_neither_in_memory_nor_given_back(world):
    content = bytes(16 * 2048) + b"\x01CD001\x01" + b"SECRET" * 400
    agent = await world.agent()
    spec = agent.disks.checked("cd", pb.DiskSpec(config_drive=content))
    disk = await agent.disks.create("cd", spec, 5.0)
    await until(lambda: disk.status.state == pb.STATE_READY, "ready")
    assert world.attacher.drives["cd"] == content
    assert b"SECRET" not in agent.disks.message(disk).SerializeToString()
    assert await agent.disks.create("cd", spec, 5.0) is disk
    await agent.close()
    world.attacher.served.clear()
    world.attacher.drives.clear()
    agent = await world.agent()
    await until(lambda: world.attacher.drives.get("cd") == content, "served again after both were restarted")
    await agent.close()


async def test_a_missing_volume_fails_at_once_and_is_tried_again_when_made(world):
    await world.attacher.create_volume("v1", size_bytes=512)
    world.card.power = c.HostPower.ABSENT
    agent = await world.agent()
    disk = await create_disk(agent)
    await until(lambda: disk.status.reason == "WaitingForBus", "waits for the board")
    await world.attacher.delete_volume("v1")
    world.card.power = c.HostPower.OFF
    world.card.emit(c.CardEventKind.BUS_BACK)
    await until(lambda: disk.status.state == pb.STATE_FAILED, "failed, long before its deadline")
    assert disk.status.reason == "VolumeNotFound"
    await until(lambda: agent.idle, "nothing is tried for nothing")
    await agent.volumes.create("v1", pb.VolumeSpec(size_bytes=512))
    await until(lambda: disk.status.state == pb.STATE_READY, "ready")
    await agent.close()


async def test_deletes_end_while_the_board_is_gone(world):
    await world.attacher.create_volume("v1", size_bytes=512)
    agent = await world.agent()
    resource, disk = await create_nic(agent), await create_disk(agent)
    await until(lambda: resource.status.state == disk.status.state == pb.STATE_READY, "ready")
    world.card.power = c.HostPower.ABSENT
    world.card.emit(c.CardEventKind.BUS_LOST)
    await agent.interfaces.delete("n1")
    await agent.disks.delete("d1")
    await until(lambda: not (agent.interfaces.resources or agent.disks.resources), "gone")
    # The bus was lost, the board was not: what it still holds is nobody's now.
    world.card.power = c.HostPower.ON
    world.card.emit(c.CardEventKind.BUS_BACK)
    await until(lambda: not (world.card.nics or world.card.held), "swept")
    await agent.close()


async def test_boot_evidence_is_since_the_power_on(world):
    await world.attacher.create_volume("v1", size_bytes=512)
    world.card.power = c.HostPower.OFF
    agent = await world.agent()
    resource, disk = await create_nic(agent), await create_disk(agent, boot=True)
    await until(lambda: resource.status.state == disk.status.state == pb.STATE_READY, "ready")
    world.binder.change("pf0vf0", rx_packets=7)
    world.card.read["d1"] = 1000
    assert not (await agent.server.refresh()).HasField("powered_on")
    world.card.power = c.HostPower.ON
    world.card.emit(c.CardEventKind.HOST_POWER)
    await until(lambda: agent.server._evidence.powered_on > 0, "power-on seen")
    server = await agent.server.message()
    assert (server.boot_disk_bytes_read, server.first_packet_seen) == (0, False)
    world.card.read["d1"] = 1500
    await until(lambda: agent.server._evidence.bytes_read == 500, "bytes counted from the power-on")
    await agent.close()
    agent = await world.agent()  # a restart of the agent forgets nothing
    assert (await agent.server.refresh()).powered_on == server.powered_on
    world.binder.change("pf0vf0", rx_packets=8)
    await until(lambda: agent.server._evidence.first_packet > 0, "first packet")
    await until(agent.server._poll.done, "nothing is asked any more")
    assert (await agent.server.refresh()).first_packet_seen
    await agent.close()


async def test_bus_that_comes_back_during_the_end_of_a_delete(world):
    """The look that its return brings finds the function still owned; it must be taken when it is nobody's."""
    agent = await world.agent()
    await create_nic(agent)
    await until(lambda: agent.interfaces.get("n1").status.state == pb.STATE_READY, "ready")
    world.card.power = c.HostPower.ABSENT
    remove, go_on, begun = agent._store.remove, asyncio.Event(), asyncio.Event()

    async def slow_disk(kind, id):
        begun.set()
        await go_on.wait()
        await remove(kind, id)

    agent._store.remove = slow_disk
    await agent.interfaces.delete("n1")
    await begun.wait()
    world.card.power = c.HostPower.ON
    world.card.emit(c.CardEventKind.BUS_BACK)
    await asyncio.sleep(0.05)
    assert world.card.nics
    go_on.set()
    await until(lambda: agent.idle, "at rest")
    assert not world.card.nics
    await agent.close()


FAULTS = ["card", "binder", "attacher", "agent", "storage", "bus", "host-released", "storm"]
VERBS = ["create-nic", "delete-nic", "create-disk", "delete-disk"]
STEPS = st.lists(st.tuples(st.sampled_from([*VERBS, *VERBS, *FAULTS]), st.integers(1, 3)), min_size=10, max_size=40)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS, seed=st.integers(0, 1000))
def test_any_history_converges_without_a_leak(make_world, steps, seed):
    with tempfile.TemporaryDirectory(prefix="ot-", dir="/tmp") as folder:
        asyncio.run(_history(make_world(Path(folder)), steps, random.Random(seed)))


async def _history(world, steps, dice):
    for number in range(1, 6):
        await world.attacher.create_volume(f"v{number}", size_bytes=512)
    agent = await world.agent()
    nics, disks = set(), set()
    for what, number in steps:
        name = f"x{number}"
        match what:
            case "create-nic":
                with contextlib.suppress(OpenDPUError):
                    await create_nic(agent, name, number)
                    nics.add(name)
            case "delete-nic":
                await agent.interfaces.delete(name)
                nics.discard(name)
            case "create-disk":
                with contextlib.suppress(OpenDPUError):
                    await create_disk(agent, name, f"v{number}")
                    disks.add(name)
            case "delete-disk":
                await agent.disks.delete(name)
                disks.discard(name)
            case "card" | "binder" | "attacher":
                getattr(world, what).fail.extend([UnavailableError("it broke")] * number)
            case "agent":
                await agent.close()
                agent = await world.agent()
            case "storage":
                world.attacher.restart()
            case "bus":
                absent = world.card.power is c.HostPower.ABSENT
                world.card.power = c.HostPower.ON if absent else c.HostPower.ABSENT
                world.card.emit(c.CardEventKind.BUS_BACK if absent else c.CardEventKind.BUS_LOST)
            case "host-released":
                if world.card.nics:
                    lost = dice.choice(sorted(world.card.nics))
                    del world.card.nics[lost]
                    world.card.emit(c.CardEventKind.FUNCTION_GONE, lost.representor)
            case "storm":
                for _ in range(200):
                    world.binder.emit("")
                    world.card.emit(c.CardEventKind.HOST_POWER)
        # Sometimes the agent gets to the end, sometimes the next thing happens in the middle.
        await asyncio.sleep(dice.choice([0, 0, 0.001, 0.005]))
    world.card.power = c.HostPower.ON
    world.card.emit(c.CardEventKind.BUS_BACK)
    await until(lambda: agent.idle, "at rest", timeout=10)
    assert {r.id for r in agent.interfaces.resources.values() if r.status.state == pb.STATE_READY} == nics
    assert {r.id for r in agent.disks.resources.values() if r.status.state == pb.STATE_READY} == disks
    assert {f.representor for f in world.card.nics} == set(world.binder.table)
    assert {f.representor for f in world.card.nics} == {r.allocation for r in agent.interfaces.resources.values()}
    assert {f.mac for f in world.card.nics.values()} == {r.spec.mac for r in agent.interfaces.resources.values()}
    assert set(world.card.held) == set(world.attacher.served) == disks
    await agent.close()
