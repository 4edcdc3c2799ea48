"""Locks on files of the pool, which several storage daemons and agents share.

QEMU marks an open image with open-file-description locks: a read lock on byte 100+i for each permission i it holds and
on byte 200+i for each it denies to others (block/file-posix.c, RAW_LOCK_PERM_BASE and RAW_LOCK_SHARED_BASE).
"""

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

_FLOCK = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux
_QEMU_FIRST, _QEMU_BYTES = 100, 200


def image_in_use(path: Path) -> bool:
    """Whether any process has this image open through QEMU's block layer; False when there is no such file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _QEMU_FIRST, _QEMU_BYTES, 0)
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked)
    finally:
        os.close(fd)
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


@contextlib.contextmanager
def image_to_myself(path: Path) -> Iterator[bool]:
    """Keep every QEMU from opening an existing image; yields False when one has it open already."""
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _QEMU_FIRST, _QEMU_BYTES, 0)
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, wanted)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)


@contextlib.contextmanager
def file_lock(path: Path, *, shared: bool = False, wait: bool = True) -> Iterator[bool]:
    """Hold flock(2) on a lock file; yields False when `wait` is off and somebody else holds it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)
