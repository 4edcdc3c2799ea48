"""The pool: a folder of qcow2 images and their copy-on-write clones, shared by all SoCs.

    root/images/NAME.qcow2 + NAME.json      root/volumes/ID.qcow2 + ID.json

The .json file is written last and removed first: without it nothing counts, whatever a crash has left. New files are
made under names that begin with ".new-". `root/.names` is locked for the moment in which a name comes or goes,
`root/.making` is held shared by everyone who makes a file, so that leftovers are told from work under way.

Methods block on the file system (not on other processes): an asyncio program calls them in a thread.
"""

import contextlib
import hashlib
import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from opendpu.errors import (
    AlreadyExistsError,
    DeadlineError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OpenDPUError,
    ResourceExhaustedError,
)
from opendpu.storage.files import disk_errors, publish, sync_file, sync_folder, write_new
from opendpu.storage.formats import HEADER_BYTES, identify, open_regular
from opendpu.storage.locks import file_lock, image_in_use, image_to_myself
from opendpu.storage.model import ImageInfo, VolumeSpec, check_id, check_image_name, check_size

_NEW = ".new-"


class FilePool:
    """A pool at `root`; the folders are made when missing, readable by their owner only."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._images = root / "images"
        self._volumes = root / "volumes"
        for folder in (root, self._images, self._volumes):
            with disk_errors(f"the pool's folder {folder}"):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    # ---- images ----

    def image_path(self, name: str) -> Path:
        return self._images / f"{check_image_name(name)}.qcow2"

    def backing_name(self, name: str) -> str:
        """The image's path as seen from a volume: what a clone's header says, so that the pool may be moved."""
        return f"../{self._images.name}/{self.image_path(name).name}"

    def image(self, name: str) -> ImageInfo:
        """Raises NotFoundError."""
        record = _read_record(self._images / f"{check_image_name(name)}.json")
        if record is None:
            raise NotFoundError(f"no image {name!r} in the pool; add it first", reason="ImageNotFound")
        return ImageInfo(name, int(record["size_bytes"]), str(record["sha256"]))

    def images(self) -> list[ImageInfo]:
        return [self.image(name) for name in _names(self._images)]

    def add_image(self, name: str, path: Path, *, timeout: float = 900.0) -> ImageInfo:
        """Take a raw or qcow2 file into the pool under a name; the same file again changes nothing.

        Raises InvalidArgumentError (not usable: it says why), AlreadyExistsError (the name has other content),
        ResourceExhaustedError (disk full), DeadlineError (converting took over `timeout` seconds).
        """
        check_image_name(name)
        source = open_regular(path, "image")
        try:
            before = os.fstat(source)
            kind, size = identify(os.pread(source, HEADER_BYTES, 0), before.st_size)
            with open(source, "rb", closefd=False) as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            made = ImageInfo(name, size, sha256)
            if self._has_image(made):
                return made
            with self.new_file(self._images) as new:
                _convert(source, kind, new, timeout)
                after = os.fstat(source)
                if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                    raise FailedPreconditionError(f"{path} was changed while it was read; try again when it is whole")
                with self._names_locked():
                    if not self._has_image(made):
                        publish(new, self.image_path(name), {"size_bytes": size, "sha256": sha256})
            return made
        finally:
            os.close(source)

    def remove_image(self, name: str) -> None:
        """Forget an image; none such: nothing to do. Raises FailedPreconditionError while volumes are clones of it."""
        path = self.image_path(name)
        with self._names_locked():
            clones = [spec.id for spec in self.specs() if spec.image == name]
            if clones:
                raise FailedPreconditionError(
                    f"image {name!r} has {len(clones)} clones ({', '.join(clones[:3])} ...); delete these first",
                    reason="ImageInUse",
                )
            _forget(path)

    def _has_image(self, wanted: ImageInfo) -> bool:
        try:
            found = self.image(wanted.name)
        except NotFoundError:
            return False
        if found != wanted:
            raise AlreadyExistsError(
                f"image {wanted.name!r} is in the pool with other content (sha256 {found.sha256[:12]}..., this file "
                f"{wanted.sha256[:12]}...); take another name or remove it first"
            )
        return True

    # ---- volumes ----

    def volume_path(self, id: str) -> Path:
        return self._volumes / f"{check_id(id, 'volume')}.qcow2"

    def spec(self, id: str) -> VolumeSpec:
        """Raises NotFoundError."""
        record = _read_record(self._volumes / f"{check_id(id, 'volume')}.json")
        if record is None:
            raise NotFoundError(f"no volume {id!r} in the pool", reason="VolumeNotFound")
        image = str(record["image"])
        return VolumeSpec(id, check_image_name(image) if image else "", int(record["size_bytes"]))

    def specs(self) -> list[VolumeSpec]:
        return [self.spec(name) for name in _names(self._volumes)]

    def plan_volume(self, id: str, image: str, size_bytes: int) -> VolumeSpec:
        """Resolve and check what a new volume shall be. Raises NotFoundError (image), InvalidArgumentError."""
        check_id(id, "volume")
        if not image:
            return VolumeSpec(id, "", check_size(size_bytes, "volume"))
        least = self.image(image).size_bytes
        size = check_size(size_bytes or least, "volume")
        if size < least:
            raise InvalidArgumentError(f"volume of {size} bytes is smaller than its image {image!r} ({least} bytes)")
        return VolumeSpec(id, image, size)

    def has_volume(self, wanted: VolumeSpec) -> bool:
        """Raises AlreadyExistsError when the id has another specification."""
        try:
            found = self.spec(wanted.id)
        except NotFoundError:
            return False
        if found != wanted:
            raise AlreadyExistsError(
                f"volume {wanted.id!r} exists with {found.size_bytes} bytes from image {found.image or 'none'!r}; "
                f"delete it first or take another id"
            )
        return True

    def new_volume_file(self) -> contextlib.AbstractContextManager[Path]:
        """An empty file to make a volume in; see `new_file`."""
        return self.new_file(self._volumes)

    def keep_volume(self, new: Path, spec: VolumeSpec) -> None:
        """Let a finished file be the volume, durably; if another agent was first with the same one, theirs stays."""
        with self._names_locked():
            if self.has_volume(spec):
                return
            if spec.image:
                self.image(spec.image)  # it may have been removed meanwhile
            record = asdict(spec)
            del record["id"]
            publish(new, self.volume_path(spec.id), record)

    def delete_volume(self, id: str) -> None:
        """None such: nothing to do. Raises FailedPreconditionError while a storage daemon has it open."""
        path = self.volume_path(id)
        with self._names_locked():
            if not path.exists():
                _forget(path)
                return
            with image_to_myself(path) as mine:
                if not mine:
                    raise FailedPreconditionError(
                        f"volume {id!r} is open in a storage daemon; delete the disk that uses it first",
                        reason="VolumeInUse",
                    )
                _forget(path)

    def allocated(self, id: str) -> int:
        """Bytes the volume takes in the pool."""
        try:
            return self.volume_path(id).stat().st_blocks * 512
        except FileNotFoundError:
            return 0

    def in_use(self, id: str) -> bool:
        """Whether any storage daemon on this machine has it open."""
        return image_in_use(self.volume_path(id))

    # ---- keeping house ----

    @contextlib.contextmanager
    def new_file(self, folder: Path) -> Iterator[Path]:
        """An empty file (0600) that is gone at the end unless it was given a name that counts."""
        with file_lock(self.root / ".making", shared=True):
            path = folder / f"{_NEW}{secrets.token_hex(8)}.qcow2"
            with disk_errors(f"a new file in {folder}"):
                write_new(path, b"")
            try:
                yield path
            finally:
                path.unlink(missing_ok=True)

    def clean(self) -> list[str]:
        """Remove what crashes left behind, unless somebody is making a file now; return the names removed."""
        removed: list[str] = []
        with file_lock(self.root / ".making", wait=False) as alone:
            if not alone:
                return removed
            with self._names_locked():
                for folder in (self._images, self._volumes):
                    counts = set(_names(folder))
                    for path in folder.iterdir():
                        if path.name.startswith(_NEW) or (path.suffix == ".qcow2" and path.stem not in counts):
                            path.unlink(missing_ok=True)
                            removed.append(path.name)
        return removed

    def problems(self) -> list[str]:
        """What keeps the pool from working well; empty if nothing does."""
        try:
            space = os.statvfs(self._volumes)
        except OSError as error:
            return [f"the pool {self.root} can't be read: {error.strerror}"]
        if space.f_bavail < space.f_blocks * 0.05:
            free = space.f_bavail * space.f_frsize >> 20
            return [f"the pool {self.root} is nearly full: {free} MiB left; delete volumes or enlarge it"]
        return []

    @contextlib.contextmanager
    def _names_locked(self) -> Iterator[None]:
        with file_lock(self.root / ".names"):
            yield


def _names(folder: Path) -> list[str]:
    return sorted(
        entry.name.removesuffix(".json")
        for entry in os.scandir(folder)
        if entry.name.endswith(".json") and not entry.name.startswith(".")
    )


def _read_record(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        raise OpenDPUError(f"{path} is no JSON; the pool was changed by hand: restore or remove it") from None
    if not isinstance(record, dict):
        raise OpenDPUError(f"{path} holds no record; the pool was changed by hand: restore or remove it")
    return record


def _forget(path: Path) -> None:
    path.with_suffix(".json").unlink(missing_ok=True)
    sync_folder(path.parent)
    path.unlink(missing_ok=True)


def _convert(source: int, kind: str, target: Path, timeout: float) -> None:
    """Rewrite an opened image as a qcow2 file that depends on nothing else."""
    # By descriptor: the file that was examined, not whatever has its name by now.
    file = {"driver": "file", "filename": f"/proc/self/fd/{source}"}
    node = {"driver": kind, "file": file} | ({"backing": None} if kind == "qcow2" else {})
    command = ["qemu-img", "convert", "-O", "qcow2", f"json:{json.dumps(node)}", str(target)]
    try:
        done = subprocess.run(command, pass_fds=[source], capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise DeadlineError(
            f"converting the image took over {timeout:.0f} s; is it sane, and is the disk fast?"
        ) from None
    if done.returncode:
        if "No space left" in done.stderr:
            raise ResourceExhaustedError(
                f"no space left for the image in {target.parent}; delete volumes or enlarge it"
            )
        raise InvalidArgumentError(f"the image can't be read: {done.stderr.strip()[-300:]}")
    sync_file(target)
