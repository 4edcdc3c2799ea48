"""Names and shapes of what the attacher puts into a storage daemon.

An export's id tells everything ("vol.DISK.VOLUME", "cfg.DISK"; neither id has a dot), so that a restarted agent learns
from the daemon what is served. A node's name may have 31 characters only (BDRV_MAX_NODE_NAME), so it is a digest.

A volume's nodes are spelled out to the last file: a name inside an image is never followed.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Served:
    """What an export serves; `volume` is empty for a config drive."""

    disk: str
    volume: str

    @property
    def export_id(self) -> str:
        return f"vol.{self.disk}.{self.volume}" if self.volume else f"cfg.{self.disk}"

    @classmethod
    def parse(cls, export_id: str) -> "Served | None":
        """None when the export is not the attacher's."""
        match export_id.split("."):
            case ["vol", disk, volume] if disk and volume:
                return cls(disk, volume)
            case ["cfg", disk] if disk:
                return cls(disk, "")
        return None


def node_name(disk: str) -> str:
    return "d" + hashlib.blake2b(disk.encode(), digest_size=15).hexdigest()


def volume_node(disk: str, path: Path, base: Path | None, *, read_only: bool) -> dict[str, object]:
    """blockdev-add arguments for a qcow2 volume; the host's discards free space in the pool."""
    discard = "ignore" if read_only else "unmap"
    return {
        **{"driver": "qcow2", "node-name": node_name(disk), "read-only": read_only, "discard": discard},
        "file": {"driver": "file", "filename": str(path), "read-only": read_only, "discard": discard},
        "backing": None if base is None else _image_node(base),
    }


def config_drive_node(disk: str, path: Path) -> dict[str, object]:
    return {
        **{"driver": "raw", "node-name": node_name(disk), "read-only": True},
        "file": {"driver": "file", "filename": str(path), "read-only": True},
    }


def _image_node(path: Path) -> dict[str, object]:
    return {
        **{"driver": "qcow2", "read-only": True, "backing": None},
        "file": {"driver": "file", "filename": str(path), "read-only": True},
    }
