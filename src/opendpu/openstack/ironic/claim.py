"""What this node has on its card, so that all of it can be taken away again.

A card serves one server, and a server in bare-metal service belongs wholly to its tenant. So releasing takes away
*everything* the agent holds, also what a person plugged by other means. That is only right for the node whose card it
is: a node first claims its card, which is refused while the card holds anything (two nodes with one agent's address,
or the remains of a failure), and a node that has claimed nothing releases nothing.
"""

from typing import Any

from ironic.common import exception

from opendpu.agent.client import AgentClient

from . import agent
from .targets import Target

_CLAIM = "dpu_claim"
_VOLUMES = "dpu_volumes"  # volumes made for this deployment: id -> "clone" or "blank"


def held(client: AgentClient) -> tuple[list[str], list[str]]:
    """Ids of the interfaces and of the disks that the agent holds."""
    return [interface.id for interface in client.list_interfaces()], [disk.id for disk in client.list_disks()]


def claimed(node: Any) -> bool:
    return _CLAIM in node.driver_internal_info


def take(node: Any, client: AgentClient) -> None:
    """Claim the card, written down before anything is made on it. Raises InstanceDeployFailure if it is not empty."""
    interfaces, disks = held(client)
    if interfaces or disks:
        raise exception.InstanceDeployFailure(
            f"The card already holds {describe(interfaces, disks)}, which this node did not make. See that no other "
            "node has the same driver_info/dpu_agent_address; then clean this one: "
            "`baremetal node clean` with the step deploy.release_card."
        )
    mark(node, client.get_server().card_serial)


def mark(node: Any, serial: str = "") -> None:
    node.set_driver_internal_info(_CLAIM, serial)
    node.save()


def remember_volume(node: Any, target: Target) -> None:
    """Written before the volume is made: a volume that nobody knows of is never deleted."""
    if not target.delete_on_termination:
        return
    volumes = dict(node.driver_internal_info.get(_VOLUMES, {}))
    volumes[target.volume_id] = "clone" if target.image else "blank"
    node.set_driver_internal_info(_VOLUMES, volumes)
    node.save()


def forget_volume(node: Any, volume_id: str) -> None:
    volumes = dict(node.driver_internal_info.get(_VOLUMES, {}))
    volumes.pop(volume_id, None)
    node.set_driver_internal_info(_VOLUMES, volumes)
    node.save()


def release(node: Any, client: AgentClient, *, blank_volumes: bool) -> None:
    """Take away every disk and interface and this deployment's clones; `blank_volumes`: its data volumes too.

    Idempotent; what a failure leaves is released by the next call. The host should be off: a running one is asked to
    let go of its devices and may take its time.
    """
    if claimed(node):
        empty(client)
        node.del_driver_internal_info(_CLAIM)
        node.save()
    for volume_id, kind in node.driver_internal_info.get(_VOLUMES, {}).items():
        if kind == "clone" or blank_volumes:
            client.delete_volume(volume_id)
            forget_volume(node, volume_id)


def to_release(node: Any) -> bool:
    return claimed(node) or bool(node.driver_internal_info.get(_VOLUMES))


def empty(client: AgentClient) -> None:
    """Take away every disk and interface of the card. All are asked for first, then waited for together."""
    interfaces, disks = held(client)
    for interface in interfaces:
        client.delete_interface(interface)
    for disk in disks:
        client.delete_disk(disk)
    client.wait_deleted(interfaces=interfaces, disks=disks, timeout=agent.RELEASE_TIMEOUT)


def describe(interfaces: list[str], disks: list[str]) -> str:
    parts = [f"interface {interface}" for interface in interfaces] + [f"disk {disk}" for disk in disks]
    return ", ".join(parts)
