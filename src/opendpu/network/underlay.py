"""Keeps a tunnel endpoint: address, MTU and link state of an OVS internal port.

The internal port of a userspace bridge is a tap of ovs-vswitchd's. It outlives a killed ovs-vswitchd, but a new one,
after the bridge was made anew or with the SoC's first start, begins bare. The kernel tells of each such change
by rtnetlink(7), so nothing is polled.
"""

import argparse
import asyncio
import contextlib
import errno
import ipaddress
import logging
import signal
import socket

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR, RTMGRP_LINK

from opendpu.errors import InvalidArgumentError

log = logging.getLogger(__name__)

_IFF_UP = 1
_RETRY_S = 1.0


class Underlay:
    """`address` is an interface address with its prefix (10.99.0.1/24), `mtu` in bytes. Acts in the network namespace
    of the caller's thread at `start`.
    """

    def __init__(self, *, bridge: str, address: str, mtu: int) -> None:
        try:
            self._address = ipaddress.ip_interface(address)
        except ValueError as error:
            raise InvalidArgumentError(f"underlay address {address!r}: {error}; write it as 10.99.0.1/24") from None
        if "/" not in address:
            raise InvalidArgumentError(f"underlay address {address!r} has no prefix length; write it as 10.99.0.1/24")
        self.bridge = bridge
        self.mtu = mtu
        self._problem = f"{bridge} was not looked at yet"
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin; the port need not be there yet."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"underlay-{self.bridge}")

    async def close(self) -> None:
        """Stop; the port keeps what it has."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def health(self) -> list[str]:
        """What is wrong with the tunnel endpoint, or nothing."""
        return [self._problem] if self._problem else []

    async def _run(self) -> None:
        while True:
            try:
                async with AsyncIPRoute() as events, AsyncIPRoute() as netlink:
                    # Listen first, then look: a change in between is seen twice instead of never.
                    await events.bind(RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR)
                    await self._ensure(netlink)
                    while True:
                        # All that is waiting comes at once; one look answers it.
                        changed = [message async for message in events.get()]
                        if any(self._concerns(message) for message in changed):
                            await self._ensure(netlink)
            except (NetlinkError, OSError) as error:
                # ENOBUFS: the kernel dropped events because we were too slow; a new socket and a new look mend it.
                self._problem = f"netlink on {self.bridge}: {error}"
                log.warning("%s; looking again in %.0f s", self._problem, _RETRY_S)
                await asyncio.sleep(_RETRY_S)

    def _concerns(self, message: dict) -> bool:  # type: ignore[type-arg]
        name = message.get("IFLA_IFNAME") or message.get("IFA_LABEL")
        # An IPv6 address event has no label.
        return name in (None, self.bridge)

    async def _ensure(self, netlink: AsyncIPRoute) -> None:
        """Make the port as it should be, touching only what differs (our own changes come back as events)."""
        try:
            link = await self._link(netlink)
            if link is None:
                self._problem = f"{self.bridge} is not there; is ovs-vswitchd running?"
                return
            index = link["index"]
            if link.get("IFLA_MTU") != self.mtu:
                await netlink.link("set", index=index, mtu=self.mtu)
            if not await self._has_address(netlink, index):
                family = socket.AF_INET if self._address.version == 4 else socket.AF_INET6
                await netlink.addr(
                    "replace", index=index, address=str(self._address.ip), prefixlen=self._address.network.prefixlen,
                    family=family,
                )  # fmt: skip
            if not link["flags"] & _IFF_UP:
                await netlink.link("set", index=index, state="up")
                log.info("%s is up with %s, MTU %d", self.bridge, self._address, self.mtu)
            self._problem = ""
        except NetlinkError as error:
            if error.code == errno.ENODEV:  # gone while we looked; its event is on the way
                self._problem = f"{self.bridge} is not there; is ovs-vswitchd running?"
                return
            self._problem = f"{self.bridge} cannot be given {self._address}, MTU {self.mtu}: {error}"
            log.error("%s", self._problem)

    async def _link(self, netlink: AsyncIPRoute) -> dict | None:  # type: ignore[type-arg]
        try:
            links = await netlink.link("get", ifname=self.bridge)
        except NetlinkError as error:
            if error.code == errno.ENODEV:
                return None
            raise
        for link in links:
            return link  # type: ignore[no-any-return]
        return None

    async def _has_address(self, netlink: AsyncIPRoute, index: int) -> bool:
        wanted = (str(self._address.ip), self._address.network.prefixlen)
        async for message in await netlink.addr("dump", index=index):
            if (message.get("IFA_ADDRESS"), message["prefixlen"]) == wanted:
                return True
        return False


async def _main() -> None:
    """Keep one endpoint until SIGTERM, for a chassis without an agent (a gateway node)."""
    parser = argparse.ArgumentParser(prog="python -m opendpu.network.underlay", description=_main.__doc__)
    parser.add_argument("--bridge", required=True)
    parser.add_argument("--address", required=True, help="with prefix length, e.g. 10.99.0.1/24")
    parser.add_argument("--mtu", required=True, type=int, help="bytes")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    underlay = Underlay(bridge=options.bridge, address=options.address, mtu=options.mtu)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await underlay.start()
    await stop.wait()
    await underlay.close()


if __name__ == "__main__":
    asyncio.run(_main())
