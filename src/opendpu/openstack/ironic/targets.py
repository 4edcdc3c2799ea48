"""Ironic volume targets as this driver reads them: which volume of the card's pool becomes which disk of the host."""

from dataclasses import dataclass
from typing import Any

from ironic.common import exception
from oslo_utils import strutils

VOLUME_TYPE = "dpu"
_GIB = 1024**3
_PROPERTIES = frozenset({"image", "size_gib", "delete_on_termination", "read_only"})


@dataclass(frozen=True)
class Target:
    """A disk to be. `disk_id` is the volume target's UUID.

    With `image` the volume is a clone of it; with `size_bytes` alone a blank volume; with neither it exists already.
    """

    disk_id: str
    volume_id: str
    boot: bool
    image: str = ""
    size_bytes: int = 0
    read_only: bool = False
    delete_on_termination: bool = False

    @property
    def to_be_made(self) -> bool:
        return bool(self.image or self.size_bytes)


def parse(uuid: str, *, volume_type: str, volume_id: str, boot_index: int, properties: Any) -> Target:
    """Raises InvalidParameterValue or MissingParameterValue naming the target and what to change."""
    where = f"Volume target {uuid}"
    if volume_type != VOLUME_TYPE:
        raise exception.InvalidParameterValue(f"{where}: its volume_type is {volume_type!r}, it must be 'dpu'.")
    if not isinstance(volume_id, str) or not 0 < len(volume_id) <= 36:
        raise exception.MissingParameterValue(
            f"{where}: give a volume_id of 1 to 36 characters, the volume's id in the pool."
        )
    properties = properties or {}
    unknown = set(properties) - _PROPERTIES
    if unknown:
        raise exception.InvalidParameterValue(
            f"{where}: unknown properties {sorted(unknown)}; known are {sorted(_PROPERTIES)}."
        )
    image = properties.get("image") or ""
    if not isinstance(image, str):
        raise exception.InvalidParameterValue(f"{where}: properties/image must be the name of an image of the pool.")
    return Target(
        disk_id=uuid,
        volume_id=volume_id,
        boot=boot_index == 0,
        image=image,
        size_bytes=_size(where, properties.get("size_gib")) * _GIB,
        read_only=_flag(where, properties, "read_only", default=False),
        # A clone is the deployment's own copy; anything else may be somebody's only one.
        delete_on_termination=_flag(where, properties, "delete_on_termination", default=bool(image)),
    )


def targets_of(task: Any) -> list[Target]:
    """All targets of the node, the boot disk first."""
    targets = [
        parse(
            target.uuid,
            volume_type=target.volume_type,
            volume_id=target.volume_id,
            boot_index=target.boot_index,
            properties=target.properties,
        )
        for target in sorted(task.volume_targets, key=lambda target: target.boot_index)
    ]
    seen: set[str] = set()
    for target in targets:
        if target.volume_id in seen:
            raise exception.InvalidParameterValue(
                f"Two volume targets of node {task.node.uuid} name volume {target.volume_id!r}: delete one of them."
            )
        seen.add(target.volume_id)
    return targets


def _size(where: str, value: Any) -> int:
    if value is None:
        return 0
    text = str(value)
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:9]) <= 65536 or len(text) > 5:
        raise exception.InvalidParameterValue(
            f"{where}: properties/size_gib is {value!r}; it must be a whole number of GiB from 1 to 65536."
        )
    return int(text)


def _flag(where: str, properties: Any, name: str, *, default: bool) -> bool:
    try:
        return bool(strutils.bool_from_string(properties.get(name, default), strict=True))
    except ValueError as error:
        raise exception.InvalidParameterValue(f"{where}: properties/{name} must be true or false.") from error
