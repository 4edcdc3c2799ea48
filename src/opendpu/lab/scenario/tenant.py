"""The tenant of the main job: a network, a security group, a key, and servers deployed with the stock clients."""

import json
import subprocess
import uuid
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

from opendpu.agent.v1 import agent_pb2 as pb
from opendpu.lab.enrol import wait_state
from opendpu.lab.lab import IMAGES, Lab
from opendpu.lab.openstack_client import OpenStackShell
from opendpu.lab.scenario.guest import USER, Guest
from opendpu.lab.workstation import Workstation

NETWORK = "tenant-net"
SUBNET = "tenant-subnet"
CIDR = "192.168.10.0/24"
GROUP = "servers"
PROOF_FILE = "/var/lib/opendpu-proof"

# cloud-init runs a user-data text that begins with #! once, as root, at the end of the first boot.
_USER_DATA = f"""#!/bin/sh
echo "hello from $(hostname), instance $(cloud-init query instance_id)" > {PROOF_FILE}
"""


@dataclass
class Tenant:
    lab: Lab
    shell: OpenStackShell

    @property
    def folder(self) -> Path:
        return self.lab.layout.state / "tenant"

    @cached_property
    def workstation(self) -> Workstation:
        return Workstation(self.lab.layout, self.lab.gateway)

    @property
    def key(self) -> Path:
        path = self.folder / "id_ed25519"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "opendpu-tenant", "-f", str(path)]
            subprocess.run(command, check=True, capture_output=True)
        return path

    def prepare(self) -> None:
        """Network, subnet, security group with SSH and ICMP let in, and the workstation. Idempotent."""
        if not self._has("network", NETWORK):
            self.shell.run("network", "create", NETWORK)
        if not self._has("subnet", SUBNET):
            self.shell.run("subnet", "create", "--network", NETWORK, "--subnet-range", CIDR, SUBNET)
        if not self._has("security", "group", name=GROUP):
            self.shell.run("security", "group", "create", "--description", "SSH and ping", GROUP)
            self.add_rule("--protocol", "tcp", "--dst-port", "22")
            self.add_rule("--protocol", "icmp")
        self.workstation.plug(self.shell, NETWORK)

    def add_rule(self, *options: str) -> str:
        """Let something in from anywhere; returns the rule's id."""
        rule = self.shell.run("security", "group", "rule", "create", "--ingress", *options, GROUP)
        return str(rule["id"])

    def create_port(self, name: str) -> str:
        """A Neutron port in the network and the group; returns its id. An existing one of that name is taken."""
        if not self._has("port", name):
            self.shell.run("port", "create", "--network", NETWORK, "--security-group", GROUP, name)
        return str(self.shell.run("port", "show", name)["id"])

    def deploy(self, name: str, *, image: str = IMAGES["debian"], size_gib: int = 2) -> None:
        """Ask Ironic for a server on a clone of `image`; returns when Ironic has taken the order."""
        properties = {"image": image, "size_gib": size_gib, "delete_on_termination": True}
        self._order(name, str(uuid.uuid4()), properties)

    def deploy_volume(self, name: str, volume: str) -> None:
        """The same on a volume that exists, and stays when the server is given back."""
        self._order(name, volume, {})

    def _order(self, name: str, volume: str, properties: dict[str, object]) -> None:
        node = self.lab.server(name).uuid  # volume targets take no node's name
        port = self.create_port(f"{name}-port")
        vifs = self.shell.run("baremetal", "node", "vif", "list", name)
        if not any(vif["id"] == port for vif in vifs):
            self.shell.run("baremetal", "node", "vif", "attach", name, port, json=False)
        for target in self.shell.run("baremetal", "volume", "target", "list", "--node", node):
            self.shell.run("baremetal", "volume", "target", "delete", target["uuid"], json=False)
        self.shell.run(
            "baremetal", "volume", "target", "create", "--node", node, "--type", "dpu", "--boot-index", "0",
            "--volume-id", volume,
            *(word for key, value in properties.items() for word in ("--property", f"{key}={value}")),
        )  # fmt: skip
        self.shell.run("baremetal", "node", "deploy", name, "--config-drive", str(self.config_drive(name)), json=False)

    def wait_active(self, name: str, *, timeout: float = 600) -> None:
        wait_state(self.shell, name, {"active"}, timeout=timeout)

    def ensure_power(self, name: str) -> None:
        """Power for a deployed server that has none: it lost it with the lab's `down`, as with a rack's mains."""
        with self.lab.agent(self.lab.server(name)) as agent:
            off = agent.get_server().power == pb.POWER_OFF
        if off:
            self.shell.run("baremetal", "node", "power", "on", name, json=False)

    def undeploy(self, name: str) -> None:
        """Give the server back; returns when it is available to the next tenant and its port is gone."""
        if self._has("port", f"{name}-port"):
            self.guest(name).disconnect()
        self.shell.run("baremetal", "node", "undeploy", name, json=False)
        wait_state(self.shell, name, {"available"}, timeout=180)
        if self._has("port", f"{name}-port"):
            self.shell.run("port", "delete", f"{name}-port", json=False)

    def state(self, name: str) -> str:
        return str(self.shell.run("baremetal", "node", "show", name, "--fields", "provision_state")["provision_state"])

    def timeline(self, name: str) -> dict[str, float]:
        """The moments of the last deploy as the Ironic driver noted them, in seconds since the epoch."""
        node = self.shell.run("baremetal", "node", "show", name, "--fields", "driver_internal_info")
        entries = node["driver_internal_info"].get("dpu_timeline", [])
        return {entry["name"]: datetime.fromisoformat(entry["at"]).timestamp() for entry in entries}

    def address(self, name: str) -> str:
        port = self.shell.run("port", "show", f"{name}-port")
        return str(port["fixed_ips"][0]["ip_address"])

    def guest(self, name: str) -> Guest:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return Guest(name, self.address(name), self.workstation.netns, self.key, self.lab.layout.run)

    def config_drive(self, name: str) -> Path:
        """A folder in the form of OpenStack's config drive; the client makes the ISO of it."""
        latest = self.folder / f"{name}-config" / "openstack" / "latest"
        latest.mkdir(parents=True, exist_ok=True, mode=0o700)
        public = self.key.with_suffix(".pub").read_text().strip()
        meta_data = {
            "uuid": str(uuid.uuid4()),
            "hostname": name,
            "name": name,
            "public_keys": {"tenant": public},
            "meta": {"user": USER},
        }
        (latest / "meta_data.json").write_text(json.dumps(meta_data))
        (latest / "user_data").write_text(_USER_DATA)
        return latest.parent.parent

    def _has(self, *kind: str, name: str | None = None) -> bool:
        words, wanted = (kind, name) if name else (kind[:-1], kind[-1])
        return any(item["Name"] == wanted for item in self.shell.run(*words, "list"))
