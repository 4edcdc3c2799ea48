"""From a function to a cloud network: puts representors into OVS so that OVN binds them to their logical ports.

What the host may send is decided before its first frame: br-int is in fail-mode secure, so it passes nothing until
ovn-controller has installed the port's flows, and those begin with the logical port's port security (source MAC, IP,
ARP, no VLAN tags) as Neutron wrote it, allowed address pairs and port_security_enabled=False included. Doing more here
would overrule Neutron. Frames for the switch itself reach nobody: none of STP, LACP, LLDP, BFD and CFM is switched on,
the only ones ovs-vswitchd would listen to on a port. `health` says when br-int is not in fail-mode secure.
"""

import asyncio
import logging
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opendpu.errors import InvalidArgumentError, UnavailableError
from opendpu.network.commands import IFINDEX, OWNER, AddPort, RemovePort, RemoveUnlike, Wanted, find
from opendpu.network.ovs import SwitchDatabase

log = logging.getLogger(__name__)

_MAC = re.compile(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}")  # unicast: the first octet is even
_PORT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,254}")
_NETDEV = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")  # IFNAMSIZ with its final zero
_APPLY_S = 5.0


@dataclass(frozen=True, slots=True)
class PortState:
    """A port of ours as the switch has it. `rx_packets` came from the host, `tx_packets` went to it."""

    representor: str
    port_id: str
    mac: str
    mtu: int
    ready: bool
    problem: str
    rx_packets: int
    tx_packets: int


@dataclass(frozen=True, slots=True)
class Chassis:
    hostname: str
    system_id: str
    tunnel_address: str


@dataclass(frozen=True, slots=True)
class _View:
    """What is taken out of the database's copy at each change."""

    ports: Mapping[str, PortState] = field(default_factory=dict)
    chassis: Chassis = Chassis("", "", "")
    fail_mode: str | None = None  # of the integration bridge; None: no such bridge
    applied: bool = False  # ovs-vswitchd has done all that is written


class PortBinder:
    """`ovsdb` is the switch's database, unix:/path/db.sock; `bridge` OVN's integration bridge. Must run in the network
    namespace of the switch: it notes which netdev, not only which name, it has plugged.
    """

    def __init__(self, *, ovsdb: str, bridge: str = "br-int") -> None:
        if not ovsdb.startswith("unix:/"):
            raise InvalidArgumentError(f"OVSDB address {ovsdb!r}: must be unix: and an absolute path")
        self.bridge = bridge
        self._mgmt = str(Path(ovsdb.removeprefix("unix:")).with_name(f"{bridge}.mgmt"))
        self._database = SwitchDatabase(ovsdb, view=self._look, on_view=self._on_view)
        self._now = _View()
        self._news = asyncio.Event()
        self._handlers: list[Callable[[str], None]] = []
        self._locks: dict[str, asyncio.Lock] = {}
        self._lost = True

    async def start(self) -> None:
        """Connect in the background and stay connected."""
        await self._database.start()

    async def close(self) -> None:
        """Let go; the ports stay as they are."""
        await self._database.close()

    def subscribe(self, handler: Callable[[str], None]) -> None:
        """Call `handler(representor)` in the event loop on any change of that port, its counters included (OVS writes
        them every 5 s), and `handler("")` when the database came back: look at everything. It must not block.
        """
        self._handlers.append(handler)

    async def health(self) -> list[str]:
        """Problems of the switch as a whole, none if it is well."""
        if not self._database.online:
            return [f"ovsdb-server does not answer on {self._database.remote}"]
        problems = []
        if not await self._switch_answers():
            problems.append(f"ovs-vswitchd does not answer on {self._mgmt}; is it running?")
        if self._now.fail_mode is None:
            problems.append(f"the switch has no bridge {self.bridge}")
        elif self._now.fail_mode != "secure":
            problems.append(
                f"{self.bridge} passes traffic that OVN did not allow; "
                f"run: ovs-vsctl set-fail-mode {self.bridge} secure"
            )
        return problems

    async def chassis(self) -> Chassis:
        """Who this SoC is for OVN. Raises UnavailableError while the database does not answer."""
        self._require_online()
        return self._now.chassis

    async def ports(self) -> dict[str, PortState]:
        """The ports we own, from memory. Raises UnavailableError while the database does not answer: what it last said
        would be a guess.
        """
        self._require_online()
        return dict(self._now.ports)

    async def plug(self, representor: str, *, port_id: str, mac: str, mtu: int) -> None:
        """Put a representor into the integration bridge for an OVN logical port; return when it is written.

        As it is already: nothing changes. Otherwise the port is taken out first, and put in anew only when ovs-vswitchd
        has let go of it; the new row has no `ovn-installed` of a former life. Raises InvalidArgumentError,
        FailedPreconditionError (no such bridge), UnavailableError (no database, ovs-vswitchd hangs or is down).
        """
        _check_netdev(representor)
        if not _PORT_ID.fullmatch(port_id):
            raise InvalidArgumentError(f"port id {port_id!r} is none; expected Neutron's UUID")
        if not _MAC.fullmatch(mac):
            raise InvalidArgumentError(f"MAC {mac!r} is no unicast address in lower case with colons")
        if not 68 <= mtu <= 65535:
            raise InvalidArgumentError(f"MTU {mtu} is not within 68 and 65535 bytes")
        async with self._locks.setdefault(representor, asyncio.Lock()):
            wanted = Wanted(representor, port_id, mac, mtu, _ifindex(representor))
            if await self._database.commit(RemoveUnlike(self._database, self.bridge, wanted)):
                return
            await self._wait_applied(representor)
            await self._database.commit(AddPort(self._database, self.bridge, wanted))
            log.info("%s plugged for port %s", representor, port_id)

    async def unplug(self, representor: str) -> None:
        """Take a representor out of the switch; return when it is written. None such: nothing to do.

        Raises as `plug` does.
        """
        _check_netdev(representor)
        async with self._locks.setdefault(representor, asyncio.Lock()):
            if await self._database.commit(RemovePort(self._database, representor)):
                log.info("%s unplugged", representor)

    def _require_online(self) -> None:
        if not self._database.online:
            raise UnavailableError(f"ovsdb-server does not answer on {self._database.remote}; is it running?")

    async def _wait_applied(self, representor: str) -> None:
        """Two transactions that ovs-vswitchd sees as one would leave it with the netdev it had open before."""
        try:
            async with asyncio.timeout(_APPLY_S):
                # The server tells of a transaction's changes before its end, so `_now` knows what we wrote.
                while not self._now.applied:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise UnavailableError(
                f"ovs-vswitchd has not taken {representor} out of the switch within {_APPLY_S:.0f} s; is it running?"
            ) from None

    async def _switch_answers(self) -> bool:
        try:
            async with asyncio.timeout(1.0):
                _, writer = await asyncio.open_unix_connection(self._mgmt)
        except (OSError, TimeoutError):
            return False
        writer.close()
        return True

    def _look(self, tables: Any) -> _View:
        """In the connection's thread: everything of interest, as immutable values."""
        root = next(iter(tables["Open_vSwitch"].rows.values()), None)
        ids = root.external_ids if root is not None else {}
        bridge = find(tables["Bridge"], self.bridge)
        ports = (_port_state(row) for row in tables["Interface"].rows.values() if OWNER in row.external_ids)
        return _View(
            ports={port.representor: port for port in ports},
            chassis=Chassis(ids.get("hostname", ""), ids.get("system-id", ""), ids.get("ovn-encap-ip", "")),
            fail_mode=None if bridge is None else "".join(bridge.fail_mode) or "standalone",
            applied=root is not None and root.cur_cfg >= root.next_cfg,
        )

    def _on_view(self, view: _View | None) -> None:
        """In the event loop: tell who listens what is different."""
        if view is None:
            self._lost = True
            return
        before, self._now = self._now, view
        self._news.set()
        if self._lost:
            self._lost = False
            changed = [""]
        else:
            names = before.ports.keys() | view.ports.keys()
            changed = [name for name in sorted(names) if before.ports.get(name) != view.ports.get(name)]
        for name in changed:
            for handler in self._handlers:
                try:
                    handler(name)
                except Exception:
                    log.exception("handler of a change of port %r failed", name)


def _check_netdev(name: str) -> None:
    if not _NETDEV.fullmatch(name):
        raise InvalidArgumentError(f"{name!r} is no netdev name")


def _ifindex(name: str) -> int:
    """The kernel never gives an index twice in the life of a namespace, so it tells one netdev from its successor."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0


def _port_state(row: Any) -> PortState:
    ids = row.external_ids
    problem = _problem(row)
    return PortState(
        representor=row.name,
        port_id=ids.get("iface-id", ""),
        mac=ids.get("attached-mac", ""),
        mtu=next(iter([*row.mtu, *row.mtu_request]), 0),
        ready=ids.get("ovn-installed") == "true" and row.ofport[:1] > [0] and not problem,
        problem=problem,
        rx_packets=row.statistics.get("rx_packets", 0),
        tx_packets=row.statistics.get("tx_packets", 0),
    )


def _problem(row: Any) -> str:
    """Why the port cannot carry traffic, or nothing. Missing `ovn-installed` alone is no problem, it is not yet."""
    if row.error:
        return str(row.error[0])
    present = row.ifindex[0] if row.ifindex else None
    plugged = row.external_ids.get(IFINDEX)
    if present is not None and str(present) != plugged:
        # OVS says nothing then, and carries nothing: it still holds the socket of the netdev that went.
        gone = f"{row.name} is gone from the SoC" if present == 0 else f"{row.name} was replaced by another netdev"
        return f"{gone} after it was plugged; plug it again"
    return ""
