"""Checks of what callers send. All raise InvalidArgumentError that names the field and what it must be."""

import re
import uuid

from google.protobuf.duration_pb2 import Duration

from opendpu.agent.v1 import agent_pb2 as pb
from opendpu.card.card import FunctionKind
from opendpu.errors import InvalidArgumentError

DEFAULT_MTU = 1500
MTU_MIN = 68  # bytes, RFC 791
CONFIG_DRIVE_MAX = 8 << 20
DEADLINE_MAX_S = 3600.0
WATCH_IDS_MAX = 1024

KINDS = {
    pb.FUNCTION_KIND_UNSPECIFIED: FunctionKind.VF,
    pb.FUNCTION_KIND_PF: FunctionKind.PF,
    pb.FUNCTION_KIND_VF: FunctionKind.VF,
    pb.FUNCTION_KIND_SF: FunctionKind.SF,
}

_ID = re.compile(r"[a-z0-9-]{1,48}")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SERIAL = re.compile(r"[!-~]([ -~]{0,18}[!-~])?")
# The primary volume descriptor: sector 16 of 2048 bytes, type 1, then this word (ECMA-119, 8.4).
_ISO_MAGIC = b"\x01CD001"
_ISO_MAGIC_AT = 16 * 2048


def resource_id(id: str, field: str = "id") -> str:
    if not _ID.fullmatch(id):
        raise InvalidArgumentError(f"{field} is {id[:60]!r}; it must be 1 to 48 characters of a-z, 0-9 and -")
    return id


def watch_ids(ids: list[str]) -> list[str]:
    if len(ids) > WATCH_IDS_MAX:
        raise InvalidArgumentError(f"{len(ids)} ids to watch are too many; at most {WATCH_IDS_MAX}, none means all")
    return [resource_id(each, "ids") for each in dict.fromkeys(ids)]


def deadline(duration: Duration | None, default: float) -> float:
    """Seconds from now until which READY is promised or the resource is FAILED."""
    if duration is None:
        return default
    seconds = duration.seconds + duration.nanos / 1e9
    if not 0 < seconds <= DEADLINE_MAX_S:
        raise InvalidArgumentError(f"deadline is {seconds} s; it must be more than 0 and at most {DEADLINE_MAX_S:.0f}")
    return seconds


def interface(spec: pb.InterfaceSpec, mtu_max: int) -> pb.InterfaceSpec:
    """The specification with its defaults filled in and the MAC in its one spelling."""
    mac = spec.mac.lower()
    if not _MAC.fullmatch(mac):
        raise InvalidArgumentError(f"mac is {spec.mac[:40]!r}; it must look like 52:54:00:12:34:56")
    if int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        raise InvalidArgumentError(f"mac {mac} is not the address of one station (unicast); take another")
    mtu = spec.mtu or DEFAULT_MTU
    if not MTU_MIN <= mtu <= mtu_max:
        raise InvalidArgumentError(f"mtu is {mtu}; it must be from {MTU_MIN} to {mtu_max}, the card's limit")
    try:
        port_id = str(uuid.UUID(spec.port_id))
    except ValueError:
        port_id = ""
    if port_id != spec.port_id.lower():
        raise InvalidArgumentError(f"port_id is {spec.port_id[:60]!r}; it must be the UUID of a Neutron port")
    if spec.kind not in KINDS:
        raise InvalidArgumentError(f"kind {spec.kind} is not known; use PF, VF or SF")
    kind = spec.kind or pb.FUNCTION_KIND_VF
    return pb.InterfaceSpec(port_id=port_id, mac=mac, mtu=mtu, kind=kind)


def disk(id: str, spec: pb.DiskSpec, default_serial: str) -> pb.DiskSpec:
    """The specification with its serial number and what follows from its source."""
    result = pb.DiskSpec(serial=spec.serial or default_serial, boot=spec.boot, read_only=spec.read_only)
    if not _SERIAL.fullmatch(result.serial):
        raise InvalidArgumentError(
            f"serial is {spec.serial[:40]!r}; it must be 1 to 20 ASCII characters without spaces at its ends"
        )
    match spec.WhichOneof("source"):
        case "volume_id":
            result.volume_id = resource_id(spec.volume_id, "volume_id")
        case "config_drive":
            _config_drive(spec.config_drive)
            result.config_drive = spec.config_drive
            result.read_only = True
        case _:
            raise InvalidArgumentError(f"disk {id} has no source; give volume_id or config_drive")
    return result


def _config_drive(content: bytes) -> None:
    if len(content) > CONFIG_DRIVE_MAX:
        raise InvalidArgumentError(
            f"config_drive has {len(content)} bytes, more than {CONFIG_DRIVE_MAX}; put large files on a volume"
        )
    if content[_ISO_MAGIC_AT : _ISO_MAGIC_AT + len(_ISO_MAGIC)] != _ISO_MAGIC:
        raise InvalidArgumentError("config_drive is not an ISO 9660 image (no volume descriptor at sector 16)")


def volume(spec: pb.VolumeSpec) -> pb.VolumeSpec:
    if spec.image and not _IMAGE.fullmatch(spec.image):
        raise InvalidArgumentError(
            f"image is {spec.image[:60]!r}; a name has up to 100 letters, digits, '.', '_' and '-'"
        )
    if spec.size_bytes % 512:
        raise InvalidArgumentError(f"size_bytes is {spec.size_bytes}; it must be a multiple of 512")
    if not spec.image and not spec.size_bytes:
        raise InvalidArgumentError("a blank volume needs size_bytes; or name an image to clone")
    return spec
