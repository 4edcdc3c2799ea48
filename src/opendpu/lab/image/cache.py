"""The cache of built images: one file per kind, named by the recipe that made it.

An image counts only under its final name, which it gets by a rename after all is written; so an interrupted build
leaves nothing that counts, and the next one clears what is left of it. Builders of one kind take turns by a file lock,
which the kernel drops with its process.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

from opendpu.errors import InvalidArgumentError
from opendpu.lab.image import debian, tiny
from opendpu.lab.image.tools import Progress, Tools, require, silent

Kind = Literal["debian", "tiny"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_BUILDERS: dict[str, Callable[[Path, str, Tools], Path]] = {"debian": debian.build, "tiny": tiny.build}
_HERE = Path(__file__).parent
_PROGRAMS = {
    "debootstrap": "debootstrap",
    "grub-mkimage": "grub-common",
    "mcopy": "mtools",
    "mke2fs": "e2fsprogs",
    "mkfs.vfat": "dosfstools",
    "qemu-img": "qemu-utils",
    "sgdisk": "gdisk",
    "unshare": "util-linux",
}


def recipe_key(folder: Path = _HERE) -> str:
    """SHA-256 over the names and contents of all recipe files: this package with its templates."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.is_file() and "__pycache__" not in file.parts:
            content = file.read_bytes()
            digest.update(f"{file.relative_to(folder)}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()


def locate(kind: str, cache: Path) -> Path:
    """Where the image of today's recipe is, once built."""
    return cache / f"{kind}-{recipe_key()[:16]}.qcow2"


def build_image(kind: str, cache: Path, progress: Progress = silent) -> Path:
    """The path of the image (qcow2), built now if the cache lacks it. Needs root, and a Debian mirror when it builds.

    Raises InvalidArgumentError (unknown kind, no root), FailedPreconditionError (a program is missing: says which
    package has it), UnavailableError (a step of the build failed: with the end of its output).
    """
    if kind not in _BUILDERS:
        raise InvalidArgumentError(f"There is no image {kind!r}; the lab has {', '.join(KINDS)}")
    cache.mkdir(parents=True, exist_ok=True)
    image = locate(kind, cache)
    if image.exists():
        progress("from the cache")
        return image
    if os.geteuid() != 0:
        raise InvalidArgumentError("Building an image needs root (file owners, chroot); run it with sudo")
    require(_PROGRAMS)
    with _turn(cache / f".{kind}.lock", progress):
        if not image.exists():
            _build(kind, image, progress)
    return image


def _build(kind: str, image: Path, progress: Progress) -> None:
    prefix = f".{kind}-build-"
    for left_over in image.parent.glob(f"{prefix}*"):
        shutil.rmtree(left_over)
    work = Path(tempfile.mkdtemp(prefix=prefix, dir=image.parent))
    try:
        # debootstrap and the packages' scripts need a root folder that others may enter.
        work.chmod(0o755)
        made = _BUILDERS[kind](work, recipe_key(), Tools(work, progress))
        with made.open("rb") as file:
            os.fsync(file.fileno())
        for older in image.parent.glob(f"{kind}-*.qcow2"):
            older.unlink()
        made.rename(image)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    progress(f"built, {image.stat().st_blocks * 512 / 1e6:.0f} MB")


@contextmanager
def _turn(lock: Path, progress: Progress) -> Iterator[None]:
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"another process is building it; waiting for its lock {lock}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
