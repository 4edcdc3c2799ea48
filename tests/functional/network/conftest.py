"""Fixtures: a running data centre network, hosts on it, and the binders of its SoCs."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))

from datacentre import DataCentre, Host, eventually, inside, online

from opendpu.lab import wires
from opendpu.network.binder import PortBinder, PortState


@pytest.fixture(scope="session")
def dc() -> Iterator[DataCentre]:
    centre = DataCentre()
    try:
        centre.up()
        centre.nbctl("ls-add", "net1")
        yield centre
    finally:
        centre.down()


@pytest.fixture
def make_host(dc: DataCentre) -> Iterator[Callable[..., Host]]:
    """Makes a host on a SoC, with a logical port that has port security as Neutron writes it; not yet plugged."""
    made: list[Host] = []

    def make(soc: str, number: int, *, port_security: bool = True) -> Host:
        mac, address, port_id = f"02:00:00:00:01:{number:02x}", f"10.0.0.{number}", f"port-{number}"
        host = Host(f"{dc.prefix}h{number}", soc, f"pf0vf{number}", mac, address, port_id)
        made.append(host)
        wires.add_namespace(host.netns)
        dc.wire(host)
        dc.nbctl("lsp-add", "net1", port_id, "--", "lsp-set-addresses", port_id, f"{mac} {address}")
        if port_security:
            dc.nbctl("lsp-set-port-security", port_id, f"{mac} {address}")
        return host

    yield make
    for host in made:
        dc.vsctl(host.soc, "--if-exists", "del-port", host.representor)
        wires.delete_namespace(host.netns)
        dc.nbctl("--if-exists", "lsp-del", host.port_id)


@pytest.fixture
async def binders(dc: DataCentre) -> AsyncIterator[dict[str, PortBinder]]:
    found = {name: PortBinder(ovsdb=chassis.ovsdb) for name, chassis in dc.chassis.items()}
    for binder in found.values():
        await binder.start()
        await eventually("answer of the database", lambda binder=binder: online(binder))
    yield found
    for binder in found.values():
        await binder.close()


@pytest.fixture
def plug(dc: DataCentre, binders: dict[str, PortBinder]) -> Callable[[Host], Awaitable[float]]:
    """Plugs a host and waits until it is ready; seconds that took."""

    async def plug(host: Host) -> float:
        binder = binders[host.soc]
        ready = asyncio.Event()
        told: list[PortState] = []

        async def look() -> bool:
            state = (await binder.ports()).get(host.representor)
            told[:] = [state] if state else []
            return state is not None and state.ready and state.port_id == host.port_id

        binder.subscribe(lambda name: ready.set() if name in {"", host.representor} else None)
        start = time.monotonic()
        with inside(dc.chassis[host.soc].netns):
            await binder.plug(host.representor, port_id=host.port_id, mac=host.mac, mtu=8900)
        try:
            async with asyncio.timeout(10):
                while not await look():
                    ready.clear()
                    await ready.wait()
        except TimeoutError:
            raise AssertionError(f"{host.representor} not ready after 10 s: {told}") from None
        return time.monotonic() - start

    return plug
