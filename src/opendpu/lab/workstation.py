"""A tenant's workstation: a namespace with one NIC in a tenant network, plugged into the gateway chassis as a VM would
be on a compute node. It is how a person, and the proofs, reach the deployed servers."""

import ipaddress
from dataclasses import dataclass

from opendpu.lab import wires
from opendpu.lab.chassis import INTEGRATION, Chassis
from opendpu.lab.command import run, succeeds
from opendpu.lab.layout import Layout
from opendpu.lab.openstack_client import OpenStackShell
from opendpu.lab.supervisor import in_netns

_LINK = "tenant0"
_REPRESENTOR = "ws0"
_PORT = "workstation"


@dataclass(frozen=True)
class Workstation:
    layout: Layout
    gateway: Chassis

    @property
    def netns(self) -> str:
        return self.layout.netns("ws")

    def plug(self, shell: OpenStackShell, network: str) -> str:
        """Give it an address in `network` and return that. Idempotent."""
        wires.add_namespace(self.netns)
        port = next((p for p in shell.run("port", "list", "--network", network) if p["Name"] == _PORT), None)
        if port is None:
            shell.run("port", "create", "--network", network, "--host", self.gateway.name, _PORT)
        port = shell.run("port", "show", _PORT)
        mtu = int(shell.run("network", "show", network)["mtu"])
        fixed = port["fixed_ips"][0]
        subnet = ipaddress.ip_network(shell.run("subnet", "show", fixed["subnet_id"])["cidr"])
        self._connect(port["id"], port["mac_address"], f"{fixed['ip_address']}/{subnet.prefixlen}", mtu)
        return str(fixed["ip_address"])

    def unplug(self, shell: OpenStackShell) -> None:
        self._vsctl("--if-exists", "del-port", INTEGRATION, _REPRESENTOR)
        if wires.has_link(self.gateway.netns, _REPRESENTOR):
            wires.ip("link", "delete", _REPRESENTOR, netns=self.gateway.netns)
        wires.delete_namespace(self.netns)
        if any(port["Name"] == _PORT for port in shell.run("port", "list")):
            shell.run("port", "delete", _PORT, json=False)

    def _connect(self, port_id: str, mac: str, address: str, mtu: int) -> None:
        if not wires.has_link(self.netns, _LINK):
            self._vsctl("--if-exists", "del-port", INTEGRATION, _REPRESENTOR)
            if wires.has_link(self.gateway.netns, _REPRESENTOR):
                wires.ip("link", "delete", _REPRESENTOR, netns=self.gateway.netns)
            wires.ip("link", "add", _REPRESENTOR, "netns", self.gateway.netns, "type", "veth",
                     "peer", "name", _LINK, "netns", self.netns)  # fmt: skip
        wires.ip("link", "set", _REPRESENTOR, "mtu", str(mtu), "up", netns=self.gateway.netns)
        wires.ip("link", "set", _LINK, "address", mac, "mtu", str(mtu), "up", netns=self.netns)
        wires.no_offload(self.netns, _LINK)
        wires.no_offload(self.gateway.netns, _REPRESENTOR)
        wires.ip("address", "flush", "dev", _LINK, netns=self.netns)
        wires.ip("address", "replace", address, "dev", _LINK, netns=self.netns)
        self._vsctl("--may-exist", "add-port", INTEGRATION, _REPRESENTOR, "--", "set", "Interface", _REPRESENTOR,
                    f"external_ids:iface-id={port_id}", f"external_ids:attached-mac=\"{mac}\"")  # fmt: skip

    def reaches(self, address: str, port: int, *, timeout: float = 3) -> bool:
        """Whether a TCP connection from here opens."""
        return succeeds(*in_netns(self.netns, ["nc", "-z", "-w", str(max(1, round(timeout))), address, str(port)]))

    def pings(self, address: str, *, timeout: int = 3) -> bool:
        return succeeds(*in_netns(self.netns, ["ping", "-c1", f"-W{timeout}", address]))

    def _vsctl(self, *arguments: str) -> None:
        run("ovs-vsctl", "--timeout=10", f"--db={self.gateway.ovsdb}", *arguments)
