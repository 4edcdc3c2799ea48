"""Daemons of a SoC are killed while it works; the supervisor starts them again."""

import asyncio
import json
import os
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pyroute2
import pytest
from datacentre import MTU, DataCentre, Host, eventually, stream, transfer, wait_for

from opendpu.lab import wires
from opendpu.network.binder import PortBinder

Binders = dict[str, PortBinder]
MakeHost = Callable[..., Host]
Plug = Callable[[Host], Awaitable[float]]


def tunnel_endpoint(dc: DataCentre) -> tuple[int, list[str]]:
    """Index and addresses of br-ul on soc1; index 0: there is none."""
    with pyroute2.IPRoute(netns=dc.chassis["soc1"].netns) as netlink:
        for index in netlink.link_lookup(ifname="br-ul"):
            found = netlink.get_addr(index=index, family=socket.AF_INET)
            return index, [address.get("IFA_ADDRESS") for address in found]
    return 0, []


@pytest.mark.parametrize("role", ["ovn-controller", "ovsdb-server", "ovs-vswitchd"])
async def test_killed_daemon_comes_back(
    dc: DataCentre, binders: Binders, make_host: MakeHost, plug: Plug, role: str
) -> None:
    """A TCP stream that runs meanwhile loses nothing."""
    one, two = make_host("soc1", 51), make_host("soc2", 52)
    await plug(one)
    await plug(two)
    dc.nbctl("--wait=hv", "sync")
    assert one.ping(two.address)
    all_anew = asyncio.Event()
    binders["soc1"].subscribe(lambda name: all_anew.set() if name == "" else None)
    # supervisord calls a program that died within its first second broken, and starts it later.
    await asyncio.sleep(1.5)

    def run() -> tuple[float, float]:
        with stream(one, two, seconds=9):
            time.sleep(0.5)
            before = dc.pid("soc1", role)
            dc.kill("soc1", role)
            killed = time.monotonic()
            wait_for(f"new {role}", lambda: dc.pid("soc1", role) not in (0, before))
            restarted = time.monotonic() - killed
            while not one.ping(two.address):
                assert time.monotonic() - killed < 20
            return restarted, time.monotonic() - killed

    restarted, outage = await asyncio.to_thread(run)
    figures = {"killed": role, "restarted_s": round(restarted, 2), "traffic_back_s": round(outage, 2)}
    print(json.dumps(figures))
    if folder := os.environ.get("OPENDPU_FIGURES"):
        (Path(folder) / f"network-kill-{role}.json").write_text(json.dumps(figures))
    if role == "ovsdb-server":
        async with asyncio.timeout(5):
            await all_anew.wait()
    await eventually("health", lambda: _well(binders["soc1"]))
    assert (await binders["soc1"].ports())[one.representor].ready
    # And the SoC can be worked with: a new host, new flows, both ways.
    three = make_host("soc1", 53)
    await plug(three)
    dc.nbctl("--wait=hv", "sync")
    await asyncio.to_thread(transfer, three, two)
    await asyncio.to_thread(transfer, two, one)


async def _well(binder: PortBinder) -> bool:
    return await binder.health() == []


async def test_health_names_the_daemon_that_is_down(dc: DataCentre, binders: Binders) -> None:
    supervisor = dc.supervisors["soc2"]
    for role in ("ovs-vswitchd", "ovsdb-server"):
        await asyncio.to_thread(supervisor.stop_program, f"soc2-{role}")
        try:
            await eventually("problem", lambda role=role: _has_word(binders["soc2"], role))
        finally:
            await asyncio.to_thread(supervisor.start_program, f"soc2-{role}")
        await eventually("health", lambda: _well(binders["soc2"]))


async def _has_word(binder: PortBinder, word: str) -> bool:
    return any(word in problem for problem in await binder.health())


def test_tunnel_endpoint_comes_back_at_once(dc: DataCentre) -> None:
    """A new br-ul starts bare; the time counts from when the kernel has it."""
    supervisor = dc.supervisors["soc1"]
    old, addresses = tunnel_endpoint(dc)
    assert addresses == ["10.99.0.1"]
    supervisor.stop_program("soc1-ovs-vswitchd")
    wires.ip("link", "delete", "br-ul", netns=dc.chassis["soc1"].netns)
    supervisor.start_program("soc1-ovs-vswitchd")
    wait_for("new br-ul", lambda: tunnel_endpoint(dc)[0] not in (0, old))
    there = time.monotonic()
    wait_for("tunnel address", lambda: tunnel_endpoint(dc)[1] == ["10.99.0.1"])
    seconds = time.monotonic() - there
    print(json.dumps({"tunnel_address_after_port_s": round(seconds, 3)}))
    assert seconds < 1
    link = wires.ip("-o", "link", "show", "br-ul", netns=dc.chassis["soc1"].netns)
    assert f"mtu {MTU}" in link
    assert ",UP" in link
    dc.warm()


def test_chassis_can_be_prepared_again_while_it_runs(dc: DataCentre) -> None:
    before = dc.vsctl("soc1", "--columns=_uuid,name", "list", "Bridge")
    dc.chassis["soc1"].prepare()
    dc.central.prepare()
    assert dc.vsctl("soc1", "--columns=_uuid,name", "list", "Bridge") == before
    dc.warm()


def test_chassis_speaks_tls_only_to_the_southbound_database(dc: DataCentre) -> None:
    soc = dc.chassis["soc2"].netns
    for remote in ("tcp:10.98.0.254:6642", "tcp:10.98.0.254:6641"):
        refused = dc.run(soc, "ovsdb-client", "--timeout=2", "list-dbs", remote, check=False)
        assert refused.returncode != 0
    pki = dc.chassis["soc2"].pki
    assert pki is not None
    allowed = dc.run(soc, "ovsdb-client", "--timeout=5", *pki.options(), "list-dbs", "ssl:10.98.0.254:6642")
    assert "OVN_Southbound" in allowed.stdout


def test_chassis_can_write_no_other_chassis_rows(dc: DataCentre) -> None:
    pki = dc.chassis["soc2"].pki
    assert pki is not None

    def sbctl(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ("ovn-sbctl", "--timeout=5", "--db=ssl:10.98.0.254:6642", *pki.options(), *arguments)
        return dc.run(dc.chassis["soc2"].netns, *command, check=False)

    own = sbctl("set", "chassis", "soc2", "external_ids:ot-mark=mine")
    assert own.returncode == 0, own.stderr
    encap = dc.sbctl("--bare", "--columns=_uuid", "find", "encap", "chassis_name=soc1")
    foreign = (
        ("set", "chassis", "soc1", "external_ids:ot-mark=not-mine"),
        ("destroy", "chassis", "soc1"),
        ("set", "encap", encap, "ip=10.99.0.66"),
        ("set-connection", "ptcp:6699"),
        ("--all", "destroy", "logical_flow"),
    )
    for arguments in foreign:
        refused = sbctl(*arguments)
        assert "permission error" in refused.stderr, (arguments, refused)
    sbctl("remove", "chassis", "soc2", "external_ids", "ot-mark")
    assert dc.both_chassis()
    assert "ot-mark" not in dc.sbctl("--columns=external_ids", "list", "chassis")
