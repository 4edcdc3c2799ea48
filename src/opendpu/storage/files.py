"""Files that are whole or not there, and survive a loss of power once they are."""

import contextlib
import errno
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

from opendpu.errors import OpenDPUError, ResourceExhaustedError

_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextlib.contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn the operating system's refusals into OpenDPU's errors."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise ResourceExhaustedError(f"no space left for {what}; delete volumes or enlarge the disk") from None
        raise OpenDPUError(f"{what}: {error.strerror}") from None


def write_new(path: Path, content: bytes) -> None:
    """Make a file that must not exist yet, readable by its owner only, and put it on disk."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace(path: Path, content: bytes) -> None:
    """Give a file new content at once: a reader, or a crash, sees the old one or the new one."""
    new = path.with_name(f".new-{secrets.token_hex(8)}")
    try:
        write_new(new, content)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    sync_folder(path.parent)


def publish(new: Path, path: Path, record: Mapping[str, object]) -> None:
    """Give a finished file the name that counts, then write the record (.json) that makes it count."""
    with disk_errors(str(path)):
        sync_file(new)
        new.replace(path)
        try:
            replace(path.with_suffix(".json"), json.dumps(record).encode())
        except OSError:
            path.unlink(missing_ok=True)
            raise


def sync_file(path: Path) -> None:
    _sync(path, os.O_RDONLY)


def sync_folder(path: Path) -> None:
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
