"""The agent on a real board, storage daemon and switch; only ovn-controller is stood in for (a word in OVSDB)."""

import asyncio
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from opendpu.agent.agent import Agent
from opendpu.agent.store import Store
from opendpu.agent.v1 import agent_pb2 as pb
from opendpu.card.card import CardLimits
from opendpu.card.emulated.card import EmulatedCard
from opendpu.errors import UnavailableError
from opendpu.network.binder import PortBinder
from opendpu.storage.attacher import VolumeAttacher
from opendpu.storage.pool import FilePool
from opendpu.storage.program import daemon_command

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))
from rack import Program, Rack, soc_namespace

NIC = pb.InterfaceSpec(port_id="11111111-1111-4111-8111-111111111111", mac="52:54:00:00:00:01", mtu=1400)


class Parts:
    def __init__(self) -> None:
        self.rack = Rack(slots=6, memory_mib=128)
        self.folder = self.rack.folder
        self.ovsdb = f"unix:{self.folder}/db.sock"

    def start(self) -> None:
        self.rack.start_board()
        folder = self.folder
        (folder / "pool").mkdir()
        schema = "/usr/share/openvswitch/vswitch.ovsschema"
        subprocess.run(["ovsdb-tool", "create", folder / "conf.db", schema], check=True)
        remote = f"--remote=punix:{folder}/db.sock"
        database = ("ovsdb-server", remote, f"--unixctl={folder}/db.ctl", f"{folder}/conf.db")
        self.run("ovsdb", *database)
        self.vsctl("--retry", "--no-wait", "init")
        # Where the switch keeps its bridges' management sockets, which tell that it lives.
        self.run("switch", "env", f"OVS_RUNDIR={folder}", "ovs-vswitchd", self.ovsdb, "--disable-system",
                 f"--unixctl={folder}/switch.ctl")  # fmt: skip
        bridge = "br-int"
        self.vsctl("add-br", bridge, "--", "set", "Bridge", bridge, "datapath_type=netdev", "fail_mode=secure")
        self.start_storage()

    def start_storage(self) -> None:
        self.run("storage", *daemon_command(f"{self.folder}/qmp", f"{self.folder}/nbd.sock"))

    def run(self, name: str, *command: str) -> None:
        self.rack.programs[name] = Program(*command, log=self.folder / f"{name}.out")

    def vsctl(self, *arguments: str) -> None:
        subprocess.run(["ovs-vsctl", f"--db={self.ovsdb}", "--timeout=10", *arguments], check=True)

    async def agent(self) -> Agent:
        folder = self.folder
        agent = Agent(
            card=EmulatedCard(bus=self.rack.card_qmp, model="m", serial="s", limits=CardLimits(slots=6)),
            binder=PortBinder(ovsdb=self.ovsdb),
            attacher=VolumeAttacher(
                qmp_socket=f"{folder}/qmp",
                nbd_socket=f"{folder}/nbd.sock",
                pool=FilePool(folder / "pool"),
                run_dir=folder / "drives",
            ),
            store=Store(folder / "agent.db"),
        )
        await agent.start()
        return agent


async def reached(controller, id, what, judge, timeout=20.0):
    """Wait by the same events that the API's Watch gives."""
    try:
        async with asyncio.timeout(timeout):
            async for _ in controller.hub.watch([id], [id]):
                if judge(controller.resources.get(id)):
                    return
    except TimeoutError:
        resource = controller.resources.get(id)
        pytest.fail(f"{id} not {what} within {timeout} s: {resource and resource.status}")


def ready(resource):
    return resource is not None and resource.status.state == pb.STATE_READY


async def served(agent, disk):
    try:
        return disk in await agent._attacher.exports()
    except UnavailableError:
        return False


async def history(parts: Parts) -> None:
    agent = await parts.agent()
    await agent.volumes.create("v1", pb.VolumeSpec(size_bytes=8 << 20))
    began = time.monotonic()
    disk = await agent.disks.create("d1", agent.disks.checked("d1", pb.DiskSpec(volume_id="v1", boot=True)), 30.0)
    nic = await agent.interfaces.create("n1", agent.interfaces.checked(NIC), 30.0)
    await reached(agent.disks, "d1", "ready", ready)
    waits = "WaitingForOvn"
    await reached(agent.interfaces, "n1", "waiting", lambda each: each.status.reason == waits)
    print(f"agent's own part: {time.monotonic() - began:.3f} s; {disk.status.stages} {nic.status.stages}")
    assert time.monotonic() - began < 2
    parts.vsctl("set", "Interface", nic.allocation, "external_ids:ovn-installed=true")
    await reached(agent.interfaces, "n1", "ready", ready)

    parts.rack.programs["storage"].stop()
    for name in ("qmp", "nbd.sock"):
        (parts.folder / name).unlink(missing_ok=True)
    parts.start_storage()
    async with asyncio.timeout(20):
        while not await served(agent, "d1"):  # noqa: ASYNC110 - NBD clients wait for it in the same way
            await asyncio.sleep(0.05)
    await agent.close()

    agent = await parts.agent()
    await reached(agent.disks, "d1", "ready after a restart", ready)
    await reached(agent.interfaces, "n1", "ready after a restart", ready)
    assert agent.interfaces.resources["n1"].allocation == nic.allocation
    await agent.interfaces.delete("n1")
    await agent.disks.delete("d1")
    await reached(agent.interfaces, "n1", "gone", lambda each: each is None)
    await reached(agent.disks, "d1", "gone", lambda each: each is None)
    assert not await agent._card.functions()
    assert not await agent._card.disks()
    assert not await agent._binder.ports()
    assert not await agent._attacher.exports()
    await agent.volumes.delete("v1")
    await agent.close()


async def plugged(agent):
    try:
        return await agent._card.disks() and await agent._card.functions()
    except UnavailableError:
        return False


async def cut_and_back(parts: Parts) -> None:
    """What a BMC does to a board whose disks hang: its process is killed while the storage daemon is away."""
    agent = await parts.agent()
    await agent.volumes.create("v1", pb.VolumeSpec(size_bytes=8 << 20))
    await agent.disks.create("d1", agent.disks.checked("d1", pb.DiskSpec(volume_id="v1", boot=True)), 30.0)
    nic = await agent.interfaces.create("n1", agent.interfaces.checked(NIC), 30.0)
    waits = "WaitingForOvn"
    await reached(agent.interfaces, "n1", "waiting", lambda each: each.status.reason == waits)
    parts.vsctl("set", "Interface", nic.allocation, "external_ids:ovn-installed=true")
    await reached(agent.disks, "d1", "ready", ready)
    await reached(agent.interfaces, "n1", "ready", ready)

    parts.rack.programs["storage"].stop()
    parts.rack.programs["board"].stop()
    await asyncio.to_thread(parts.rack.start_board)
    for name in ("qmp", "nbd.sock"):
        (parts.folder / name).unlink(missing_ok=True)
    parts.start_storage()
    async with asyncio.timeout(60):
        while not await plugged(agent):  # noqa: ASYNC110 - the hardware itself is what we look at
            await asyncio.sleep(0.1)
    parts.vsctl("set", "Interface", nic.allocation, "external_ids:ovn-installed=true")
    await reached(agent.disks, "d1", "ready in the new board", ready)
    await reached(agent.interfaces, "n1", "ready in the new board", ready)
    assert {(each.representor, each.mac) for each in (await agent._card.functions()).values()} == {
        (nic.allocation, NIC.mac)
    }
    await agent.close()


@pytest.mark.root
@pytest.mark.parametrize("story", [history, cut_and_back])
def test_disk_and_nic_on_real_parts(story):
    assert shutil.which("ovs-vswitchd")
    with soc_namespace():
        parts = Parts()
        try:
            parts.start()
            asyncio.run(story(parts))
        finally:
            parts.rack.close()
