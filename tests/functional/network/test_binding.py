"""From a representor to a cloud network, with the real OVS and OVN."""

import asyncio
import json
import os
import statistics
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from datacentre import DataCentre, Host, eventually, inside, transfer

from opendpu.errors import FailedPreconditionError, UnavailableError
from opendpu.lab import wires
from opendpu.network.binder import Chassis, PortBinder

Binders = dict[str, PortBinder]
MakeHost = Callable[..., Host]
Plug = Callable[[Host], Awaitable[float]]


async def test_tcp_between_two_socs(dc: DataCentre, make_host: MakeHost, plug: Plug) -> None:
    one, two = make_host("soc1", 11), make_host("soc2", 12)
    await plug(one)
    await plug(two)
    dc.nbctl("--wait=hv", "sync")
    assert one.ping(two.address)
    await asyncio.to_thread(transfer, one, two)
    await asyncio.to_thread(transfer, two, one)
    await eventually("count of the transfer's bytes on the tunnel", lambda: _counted(dc), 12)


async def _counted(dc: DataCentre) -> bool:
    """OVS writes counters every 5 s."""
    text = dc.vsctl("soc1", "--bare", "--columns=statistics", "find", "Interface", "type=geneve")
    return int(dict(item.split("=") for item in text.split())["tx_bytes"]) > 8 << 20


async def test_port_state_and_chassis(dc: DataCentre, binders: Binders, make_host: MakeHost, plug: Plug) -> None:
    host = make_host("soc1", 13)
    assert host.representor not in await binders["soc1"].ports()
    await plug(host)
    state = (await binders["soc1"].ports())[host.representor]
    assert (state.port_id, state.mac, state.mtu, state.problem) == (host.port_id, host.mac, 8900, "")
    assert host.representor not in await binders["soc2"].ports()
    assert await binders["soc1"].chassis() == Chassis("soc1", "soc1", "10.99.0.1")
    assert await binders["soc1"].health() == []

    await binders["soc1"].unplug(host.representor)
    await binders["soc1"].unplug(host.representor)
    assert host.representor not in await binders["soc1"].ports()
    assert host.representor not in dc.vsctl("soc1", "list-ports", "br-int").split()


async def test_counters_tell_of_the_hosts_packets(binders: Binders, make_host: MakeHost, plug: Plug) -> None:
    host = make_host("soc1", 14)
    await plug(host)
    heard = asyncio.Event()
    binders["soc1"].subscribe(lambda name: heard.set() if name == host.representor else None)
    before = (await binders["soc1"].ports())[host.representor].rx_packets
    host.ping("10.0.0.99")
    async with asyncio.timeout(12):
        while (await binders["soc1"].ports())[host.representor].rx_packets <= before:
            heard.clear()
            await heard.wait()


async def test_plugging_again_changes_nothing(dc: DataCentre, make_host: MakeHost, plug: Plug) -> None:
    host = make_host("soc1", 15)
    await plug(host)
    first = dc.vsctl("soc1", "get", "Interface", host.representor, "_uuid")
    await plug(host)
    assert dc.vsctl("soc1", "get", "Interface", host.representor, "_uuid") == first


async def test_other_values_replace_the_port(dc: DataCentre, make_host: MakeHost, plug: Plug) -> None:
    """A former port's ovn-installed must not count for the new one."""
    host, other = make_host("soc1", 16), make_host("soc2", 17)
    await plug(other)
    dc.vsctl(
        "soc1", "add-port", "br-int", host.representor, "--", "set", "Interface", host.representor,
        "external_ids:iface-id=somebody-else", "external_ids:ovn-installed=true",
    )  # fmt: skip
    await plug(host)
    dc.nbctl("--wait=hv", "sync")
    await asyncio.to_thread(transfer, host, other)


async def test_a_new_netdev_of_the_same_name(dc: DataCentre, binders: Binders, make_host: MakeHost, plug: Plug) -> None:
    """OVS would hold on to the old one, say that all is well, and carry nothing."""
    host, other = make_host("soc1", 18), make_host("soc2", 19)
    await plug(host)
    await plug(other)
    heard = asyncio.Event()
    binders["soc1"].subscribe(lambda name: heard.set() if name == host.representor else None)
    wires.ip("link", "delete", host.representor, netns=dc.chassis["soc1"].netns)
    async with asyncio.timeout(5):
        await heard.wait()
        while (state := (await binders["soc1"].ports())[host.representor]).ready:
            heard.clear()
            await heard.wait()
    assert "gone from the SoC" in state.problem
    dc.wire(host)
    assert not host.ping(other.address)

    async def told() -> bool:
        return "another netdev" in (await binders["soc1"].ports())[host.representor].problem

    await eventually("problem of the new netdev", told)
    await plug(host)
    dc.nbctl("--wait=hv", "sync")
    await asyncio.to_thread(transfer, host, other)


async def test_no_netdev(dc: DataCentre, binders: Binders) -> None:
    """What OVS says about it comes through."""
    with inside(dc.chassis["soc1"].netns):
        await binders["soc1"].plug("pf9vf9", port_id="nothing", mac="02:00:00:00:09:09", mtu=1500)

    async def told() -> bool:
        return "could not open network device pf9vf9" in (await binders["soc1"].ports())["pf9vf9"].problem

    await eventually("problem of the missing netdev", told)
    assert not (await binders["soc1"].ports())["pf9vf9"].ready
    await binders["soc1"].unplug("pf9vf9")


async def test_no_integration_bridge(dc: DataCentre) -> None:
    binder = PortBinder(ovsdb=dc.chassis["soc1"].ovsdb, bridge="br-none")
    await binder.start()
    try:
        await eventually("database", lambda: _has(binder.health(), "the switch has no bridge br-none"))
        with pytest.raises(FailedPreconditionError, match="br-none"):
            await binder.plug("pf0vf99", port_id="p", mac="02:00:00:00:09:09", mtu=1500)
    finally:
        await binder.close()


async def _has(health: Awaitable[list[str]], problem: str) -> bool:
    return problem in await health


async def test_bridge_that_passes_everything(dc: DataCentre) -> None:
    """ovn-controller itself puts br-int right within milliseconds, so the provider bridge stands for a wrong one."""
    binder = PortBinder(ovsdb=dc.chassis["soc2"].ovsdb, bridge="br-ex")
    await binder.start()
    try:
        wrong = "br-ex passes traffic that OVN did not allow; run: ovs-vsctl set-fail-mode br-ex secure"
        await eventually("problem", lambda: _has(binder.health(), wrong))
    finally:
        await binder.close()


async def test_no_database(tmp_path: Path) -> None:
    binder = PortBinder(ovsdb=f"unix:{tmp_path}/none.sock")
    await binder.start()
    assert "none.sock" in (await binder.health())[0]
    with pytest.raises(UnavailableError, match=r"none\.sock"):
        await binder.ports()
    with pytest.raises(UnavailableError, match=r"none\.sock"):
        await binder.plug("pf0vf0", port_id="p", mac="02:00:00:00:09:09", mtu=1500)
    await binder.close()


async def test_bind_latency(binders: Binders, make_host: MakeHost, plug: Plug) -> None:
    host = make_host("soc1", 20)
    seconds = []
    for _ in range(40):
        seconds.append(await plug(host))
        await binders["soc1"].unplug(host.representor)
    seconds.sort()
    figures = {"median_ms": statistics.median(seconds) * 1000, "p99_ms": seconds[-1] * 1000, "binds": len(seconds)}
    print(json.dumps(figures))
    if folder := os.environ.get("OPENDPU_FIGURES"):
        (Path(folder) / "network-bind.json").write_text(json.dumps(figures))
    assert figures["median_ms"] < 500
