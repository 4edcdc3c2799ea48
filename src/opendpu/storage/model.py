"""What the storage room speaks of: names, sizes and the records that cross its door."""

import re
from dataclasses import dataclass

from opendpu.errors import InvalidArgumentError

SECTOR = 512  # bytes; NBD and qcow2 sizes here are whole sectors
MAX_SIZE = 64 << 40  # bytes; far under qcow2's own limit (2 PiB at 64 KiB clusters) and over any disk here

_ID = re.compile(r"[a-z0-9-]{1,48}")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """An image of the pool. `size_bytes` is what a host sees; `sha256` is of the file that was added."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class VolumeSpec:
    """What a volume was asked to be; `image` is empty for a blank one."""

    id: str
    image: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class VolumeInfo:
    """A volume now. `in_use_by` is the id of the disk it serves here, "another server", or empty."""

    id: str
    image: str
    size_bytes: int
    allocated_bytes: int
    in_use_by: str


def check_id(id: str, what: str) -> str:
    """Return `id` if it may be part of a file name and of a QMP id; raise InvalidArgumentError otherwise."""
    if _ID.fullmatch(id) is None:
        raise InvalidArgumentError(f"{what} id {id[:60]!r} must be 1 to 48 characters of a-z, 0-9 and '-'")
    return id


def check_image_name(name: str) -> str:
    """Return `name` if it may be a file name; raise InvalidArgumentError otherwise."""
    if _IMAGE.fullmatch(name) is None:
        raise InvalidArgumentError(
            f"image name {name[:110]!r} must be 1 to 100 letters, digits, '.', '_' and '-', the first a letter or digit"
        )
    return name


def check_size(size_bytes: int, what: str) -> int:
    """Return `size_bytes` if a disk can have it; raise InvalidArgumentError otherwise."""
    if not 0 < size_bytes <= MAX_SIZE or size_bytes % SECTOR:
        raise InvalidArgumentError(
            f"{what} of {size_bytes} bytes: a size must be a positive multiple of {SECTOR}, at most {MAX_SIZE}"
        )
    return size_bytes
