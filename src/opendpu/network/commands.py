"""Transactions on the switch's database, each a command in ovsdbapp's sense: `run_idl` sees the current copy."""

from dataclasses import dataclass
from typing import Any

from ovsdbapp.backend.ovs_idl.command import BaseCommand

from opendpu.errors import FailedPreconditionError

OWNER = "opendpu"
IFINDEX = "opendpu-ifindex"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A port as it should be in the switch. `ifindex` is the netdev's at this moment, 0 if there is none."""

    representor: str
    port_id: str
    mac: str
    mtu: int
    ifindex: int

    @property
    def external_ids(self) -> dict[str, str]:
        """iface-id, attached-mac, iface-status: Documentation/topics/integration.rst of Open vSwitch."""
        return {
            "iface-id": self.port_id,
            "attached-mac": self.mac,
            "iface-status": "active",
            OWNER: "interface",
            IFINDEX: str(self.ifindex),
        }


def find(table: Any, name: str) -> Any:
    """The row with this name, or None. The tables of one switch are small and only the connection's thread looks."""
    return next((row for row in table.rows.values() if row.name == name), None)


def _note_change(api: Any) -> None:
    """Ask ovs-vswitchd to say, in cur_cfg, when it has done what is in this transaction (ovs-vswitchd.conf.db(5))."""
    for root in api.tables["Open_vSwitch"].rows.values():
        root.increment("next_cfg")


def _remove(api: Any, name: str) -> bool:
    """Take the port out of whatever bridge it is in; whether there was one."""
    port = find(api.tables["Port"], name)
    if port is None:
        return False
    for bridge in api.tables["Bridge"].rows.values():
        if port in bridge.ports:
            bridge.delvalue("ports", port)
    for interface in port.interfaces:
        interface.delete()
    port.delete()
    _note_change(api)
    return True


class RemovePort(BaseCommand):  # type: ignore[misc]
    """Result: whether there was such a port."""

    def __init__(self, api: Any, name: str) -> None:
        super().__init__(api)
        self.name = name

    def run_idl(self, txn: Any) -> None:
        del txn
        self.result = _remove(self.api, self.name)


class RemoveUnlike(BaseCommand):  # type: ignore[misc]
    """Remove the port unless it is as wanted. Result: whether the port is there, as wanted, afterwards.

    Nothing but the MTU can be mended in place: ovn-controller would leave the old `ovn-installed` on the row, and
    ovs-vswitchd keeps a socket to the netdev it opened, though another one now has its name.
    """

    def __init__(self, api: Any, bridge: str, wanted: Wanted) -> None:
        super().__init__(api)
        self.bridge = bridge
        self.wanted = wanted

    def run_idl(self, txn: Any) -> None:
        del txn
        wanted = self.wanted
        interface = find(self.api.tables["Interface"], wanted.representor)
        port = find(self.api.tables["Port"], wanted.representor)
        bridge = find(self.api.tables["Bridge"], self.bridge)
        alike = (
            interface is not None
            and port is not None
            and bridge is not None
            and port in bridge.ports
            and wanted.external_ids.items() <= interface.external_ids.items()
        )
        if alike and interface.mtu_request != [wanted.mtu]:
            interface.mtu_request = wanted.mtu
        if not alike:
            _remove(self.api, wanted.representor)
        self.result = alike


class AddPort(BaseCommand):  # type: ignore[misc]
    """Put the representor into the bridge, with all that OVN needs to bind it."""

    def __init__(self, api: Any, bridge: str, wanted: Wanted) -> None:
        super().__init__(api)
        self.bridge = bridge
        self.wanted = wanted

    def run_idl(self, txn: Any) -> None:
        bridge = find(self.api.tables["Bridge"], self.bridge)
        if bridge is None:
            raise FailedPreconditionError(
                f"the SoC's switch has no bridge {self.bridge}; has it been set up, and does ovn-controller run?",
                reason="NoIntegrationBridge",
            )
        interface = txn.insert(self.api.tables["Interface"])
        interface.name = self.wanted.representor
        interface.mtu_request = self.wanted.mtu
        interface.external_ids = self.wanted.external_ids
        port = txn.insert(self.api.tables["Port"])
        port.name = self.wanted.representor
        port.interfaces = [interface]
        bridge.addvalue("ports", port)
        _note_change(self.api)
