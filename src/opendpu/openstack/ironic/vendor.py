"""Vendor interface `dpu`: data disks of a running server. Ironic has no live volume attachment of its own: a volume
target made for an active node is looked at when it is powered on next."""

from typing import Any

from ironic import objects
from ironic.common import exception, states
from ironic.drivers import base
from oslo_log import log
from oslo_utils import uuidutils

from opendpu.errors import OpenDPUError

from . import agent, claim, storage, targets

LOG = log.getLogger(__name__)
_ATTACH = frozenset({"volume_id", "image", "size_gib", "read_only", "delete_on_termination"})
_DETACH = frozenset({"volume_id"})


class DPUVendor(base.VendorInterface):
    def get_properties(self) -> dict[str, str]:
        return {}

    def validate(self, task: Any, method: str | None = None, **kwargs: Any) -> None:
        agent.parse_driver_info(task.node)
        known = {"attach_volume": _ATTACH, "detach_volume": _DETACH}.get(method or "")
        if known is None:
            return
        # The conductor passes http_method along.
        unknown = set(kwargs) - known - {"http_method"}
        if unknown:
            raise exception.InvalidParameterValue(f"{method}: unknown {sorted(unknown)}; known are {sorted(known)}.")
        if not isinstance(kwargs.get("volume_id"), str) or not kwargs["volume_id"]:
            raise exception.MissingParameterValue(f"{method}: give volume_id, the volume's id in the pool.")

    @base.passthru(["POST"], async_call=False, description="Plug a volume of the pool into a running server.")
    def attach_volume(self, task: Any, **kwargs: Any) -> dict[str, Any]:
        """Makes a volume target and its disk; with `image` or `size_gib` the volume too. Idempotent by volume_id.

        Raises StorageError, and then no target and no disk is left.
        """
        kwargs.pop("http_method", None)
        _require_active(task)
        volume_id = kwargs.pop("volume_id")
        for target in task.volume_targets:
            if target.volume_id == volume_id:
                task.driver.storage.attach_volumes(task)
                return {"volume_target": target.uuid}
        uuid = uuidutils.generate_uuid()
        boot_index = 1 + max((target.boot_index for target in task.volume_targets), default=0)
        wanted = targets.parse(
            uuid, volume_type=targets.VOLUME_TYPE, volume_id=volume_id, boot_index=boot_index, properties=kwargs
        )
        with agent.session(task, exception.StorageError, f"Volume {volume_id} can't be plugged") as client:
            try:
                if wanted.to_be_made:
                    claim.remember_volume(task.node, wanted)
                    client.create_volume(volume_id, image=wanted.image, size_bytes=wanted.size_bytes)
                storage.create_disk(client, wanted)
                client.wait_ready(disks=[uuid], timeout=agent.READY_TIMEOUT)
            except OpenDPUError:
                _take_back(task, client, uuid)
                raise
        objects.VolumeTarget(
            task.context,
            uuid=uuid,
            node_id=task.node.id,
            volume_type=targets.VOLUME_TYPE,
            volume_id=volume_id,
            boot_index=boot_index,
            properties=kwargs,
        ).create()
        return {"volume_target": uuid}

    @base.passthru(
        ["POST"], async_call=False, description="Unplug a volume from a running server; it stays in the pool."
    )
    def detach_volume(self, task: Any, **kwargs: Any) -> None:
        """The volume is kept whatever its delete_on_termination: it can be plugged into another server.

        Raises StorageError. Nothing attached: nothing to do.
        """
        _require_active(task)
        for target in task.volume_targets:
            if target.volume_id != kwargs["volume_id"]:
                continue
            if target.boot_index == 0:
                raise exception.InvalidParameterValue(
                    f"Volume {target.volume_id} is the system disk of node {task.node.uuid}: undeploy the node instead."
                )
            with agent.session(task, exception.StorageError, f"Volume {target.volume_id} can't be unplugged") as client:
                client.delete_disk(target.uuid)
                client.wait_deleted(disks=[target.uuid], timeout=agent.RELEASE_TIMEOUT)
            claim.forget_volume(task.node, target.volume_id)
            target.destroy()


def _require_active(task: Any) -> None:
    if task.node.provision_state != states.ACTIVE:
        raise exception.InvalidParameterValue(
            f"Node {task.node.uuid} is {task.node.provision_state!r}, not active: make a volume target instead, it is "
            "plugged when the node is deployed."
        )


def _take_back(task: Any, client: Any, disk_id: str) -> None:
    try:
        client.delete_disk(disk_id)
        client.wait_deleted(disks=[disk_id], timeout=agent.RELEASE_TIMEOUT)
    except OpenDPUError:
        LOG.exception("Disk %s is left on the card of node %s; undeploying removes it", disk_id, task.node.uuid)
