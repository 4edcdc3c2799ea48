"""Storage interface `dpu`: volume targets and the config drive become PCIe disks of the host."""

from typing import Any

from ironic.common import exception, states
from ironic.drivers import base
from oslo_log import log

from opendpu.agent.client import AgentClient

from . import agent, claim, configdrive
from .targets import Target, targets_of

LOG = log.getLogger(__name__)


def config_drive_id(node: Any) -> str:
    return f"config-{node.uuid}"


def make_volumes(task: Any, client: AgentClient) -> None:
    """Clone images and make blank volumes; each is done when the call returns."""
    for target in targets_of(task):
        if target.to_be_made:
            claim.remember_volume(task.node, target)
            client.create_volume(target.volume_id, image=target.image, size_bytes=target.size_bytes)


def create_disks(task: Any, client: AgentClient) -> list[str]:
    """Ask for all disks of the node, the boot disk first; returns their ids without waiting for them."""
    # Looked at first: a broken config drive must not leave half of the disks behind.
    drive = configdrive.content(task.node)
    disks = [create_disk(client, target) for target in targets_of(task)]
    if drive:
        client.create_disk(config_drive_id(task.node), config_drive=drive)
        disks.append(config_drive_id(task.node))
    return disks


def create_disk(client: AgentClient, target: Target) -> str:
    client.create_disk(target.disk_id, volume_id=target.volume_id, boot=target.boot, read_only=target.read_only)
    return target.disk_id


class DPUStorage(base.StorageInterface):
    """Disks stay while a server is deployed: Ironic detaches at each power-off of an active node and attaches at each
    power-on, but a card keeps its desired state over both, so there is nothing to take away in between."""

    def get_properties(self) -> dict[str, str]:
        return {}

    def validate(self, task: Any) -> None:
        """Raises InvalidParameterValue or MissingParameterValue for a target that can't work."""
        targets = targets_of(task)
        if not any(target.boot for target in targets):
            raise exception.MissingParameterValue(
                f"Node {task.node.uuid} has no system disk. Make one: `baremetal volume target create --node "
                f"{task.node.uuid} --type dpu --boot-index 0 --volume-id ID --property image=NAME`."
            )

    def attach_volumes(self, task: Any) -> None:
        """Before an active node is powered on: the card must have its disks. Makes no volume: a lost one is an error,
        not a reason to boot an empty clone in its place. Raises StorageError."""
        doing = f"The disks of node {task.node.uuid} can't be had"
        with agent.session(task, exception.StorageError, doing) as client:
            client.wait_ready(disks=create_disks(task, client), timeout=agent.READY_TIMEOUT)

    def detach_volumes(self, task: Any) -> None:
        """Takes the disks away, unless the node is active (a mere power-off). Raises StorageError."""
        if task.node.provision_state == states.ACTIVE:
            LOG.debug("Node %s is powered off but stays deployed: its disks stay on the card", task.node.uuid)
            return
        if not claim.claimed(task.node):
            return
        disks = [target.disk_id for target in targets_of(task)] + [config_drive_id(task.node)]
        doing = f"The disks of node {task.node.uuid} can't be taken away"
        with agent.session(task, exception.StorageError, doing) as client:
            for disk in disks:
                client.delete_disk(disk)
            client.wait_deleted(disks=disks, timeout=agent.RELEASE_TIMEOUT)

    def should_write_image(self, task: Any) -> bool:  # noqa: ARG002 (Ironic names it)
        """Never: the system disk is a clone of the image already."""
        return False
