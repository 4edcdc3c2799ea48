"""What an image file says of itself, read without trusting it.

QEMU's own format probing would follow a backing file or data file that a stranger's image names, and so read any file
of the SoC into the tenant's disk. Here the format comes from the magic number alone, and an image that refers to
another file is refused. Facts: docs/interop/qcow2.txt of QEMU; ECMA-119 for ISO 9660.
"""

import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from opendpu.errors import InvalidArgumentError
from opendpu.storage.model import SECTOR, check_size

HEADER_BYTES = 112  # a version 3 header up to the compression type
CONFIG_DRIVE_MAX = 8 << 20

_QCOW2_MAGIC = b"QFI\xfb"
_V2 = struct.Struct(">4sIQIIQIIQQIIQ")  # 72 bytes
_V3 = struct.Struct(">QQQII")  # 32 bytes more
_CORRUPT = 1 << 1
_DATA_FILE = 1 << 2
_KNOWN_INCOMPATIBLE = 0b11111  # dirty, corrupt, data file, compression type, extended L2

# Taken for raw, these would become disks that no firmware boots: say so at the door.
_OTHER_FORMATS = {
    b"KDMV": "VMDK",
    b"# Disk DescriptorFile": "VMDK",
    b"vhdxfile": "VHDX",
    b"conectix": "VHD",
    b"QED\0": "QED",
    b"<<< ": "VDI",
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"PK\x03\x04": "zip",
}

_ISO_MAGIC_AT = 32769  # sector 16 of 2048 bytes, after the descriptor's type byte
_ISO_SECTOR = 2048


@dataclass(frozen=True, slots=True)
class Qcow2Header:
    version: int
    size_bytes: int
    has_backing: bool
    incompatible: int
    encrypted: bool


def parse_qcow2(head: bytes) -> Qcow2Header:
    """Read the header of a qcow2 file from its first bytes; raise InvalidArgumentError when it is not one."""
    if len(head) < _V2.size or head[:4] != _QCOW2_MAGIC:
        raise InvalidArgumentError("not a qcow2 file, or cut off inside its header; fetch it again")
    _, version, backing_at, _, cluster_bits, size, crypt, *_ = _V2.unpack_from(head)
    incompatible = 0
    if version == 3:
        if len(head) < _V2.size + _V3.size:
            raise InvalidArgumentError("the qcow2 file is cut off inside its header; fetch it again")
        incompatible = _V3.unpack_from(head, _V2.size)[0]
    elif version != 2:
        raise InvalidArgumentError(f"qcow2 version {version} is not known; convert the image to version 3")
    if not 9 <= cluster_bits <= 21:
        raise InvalidArgumentError(f"the qcow2 header is broken: 2^{cluster_bits} bytes are no cluster size")
    return Qcow2Header(version, size, backing_at != 0, incompatible, crypt != 0)


def check_no_reference(header: Qcow2Header) -> None:
    """Refuse a qcow2 file that needs another file or a key."""
    if header.incompatible & _DATA_FILE:
        raise InvalidArgumentError("the qcow2 image keeps its data in another file; flatten it with qemu-img convert")
    if header.encrypted:
        raise InvalidArgumentError("the qcow2 image is encrypted; decrypt it with qemu-img convert")
    if header.incompatible & _CORRUPT:
        raise InvalidArgumentError("the qcow2 image is marked corrupt; repair it with qemu-img check -r all")
    if header.incompatible & ~_KNOWN_INCOMPATIBLE:
        raise InvalidArgumentError("the qcow2 image uses features that are not known here; convert it with qemu-img")


def identify(head: bytes, file_bytes: int) -> tuple[Literal["raw", "qcow2"], int]:
    """Format and virtual size in bytes of a foreign image, from its first bytes; InvalidArgumentError if unusable."""
    if head[:4] == _QCOW2_MAGIC:
        header = parse_qcow2(head)
        if header.has_backing:
            raise InvalidArgumentError("the qcow2 image has a backing file; flatten it with qemu-img convert")
        check_no_reference(header)
        return "qcow2", check_size(header.size_bytes, "qcow2 image")
    for magic, name in _OTHER_FORMATS.items():
        if head.startswith(magic):
            raise InvalidArgumentError(f"this is a {name} file; unpack or convert it to raw or qcow2 first")
    if file_bytes < SECTOR:
        raise InvalidArgumentError(f"{file_bytes} bytes are no disk image; is the file cut off?")
    return "raw", check_size(file_bytes, "raw image")


def open_regular(path: Path, what: str) -> int:
    """Open for reading what must be a plain file itself: no link, directory, pipe or device. The caller closes."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        hint = "; a symbolic link is not followed" if path.is_symlink() else ""
        raise InvalidArgumentError(f"{what} {path} can't be read: {error.strerror}{hint}") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise InvalidArgumentError(f"{what} {path} is no plain file")
    return fd


def check_config_drive(content: bytes) -> None:
    """Refuse what is no ISO 9660 image of at most 8 MiB."""
    if len(content) > CONFIG_DRIVE_MAX:
        raise InvalidArgumentError(
            f"the config drive has {len(content)} bytes; at most {CONFIG_DRIVE_MAX} are taken: put less user-data in it"
        )
    if content[_ISO_MAGIC_AT : _ISO_MAGIC_AT + 5] != b"CD001":
        raise InvalidArgumentError(
            "the config drive is no ISO 9660 image (no CD001 at byte 32769); is it still gzipped?"
        )
    if len(content) % _ISO_SECTOR:
        raise InvalidArgumentError("the config drive is cut off: an ISO 9660 image is whole sectors of 2048 bytes")
