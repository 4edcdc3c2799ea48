"""A real storage daemon in its own folder, an NBD client that checks bytes, and a small image."""

import asyncio
import contextlib
import hashlib
import os
import random
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from opendpu.card.card import NbdBackend
from opendpu.storage.attacher import VolumeAttacher
from opendpu.storage.pool import FilePool
from opendpu.storage.program import daemon_command

IMAGE_BYTES = 8 << 20


class Daemon:
    """qemu-storage-daemon as a supervisor would run it."""

    def __init__(self, folder: Path) -> None:
        self.qmp = str(folder / "qmp")
        self.nbd = str(folder / "nbd")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(daemon_command(self.qmp, self.nbd))

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        assert self.process is not None
        self.process.send_signal(19)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()


class Nbd:
    """A small NBD client (fixed newstyle handshake, simple replies: the NBD protocol's proto.md)."""

    def __init__(self, backend: NbdBackend) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        try:
            self.socket.connect(backend.socket)
            assert self._take(16) == b"NBDMAGICIHAVEOPT"
            self._take(2)
            self.socket.sendall(struct.pack(">I", 1 | 2))
            name = backend.export.encode()
            payload = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
            self.socket.sendall(b"IHAVEOPT" + struct.pack(">II", 7, len(payload)) + payload)
            self.size = self.flags = 0
            while True:
                _, _, kind, length = struct.unpack(">QIII", self._take(20))
                data = self._take(length)
                if kind == 3 and data[:2] == b"\0\0":
                    self.size, self.flags = struct.unpack(">QH", data[2:12])
                if kind == 1:
                    break
                if kind & 0x80000000:
                    raise ConnectionError(f"NBD export {backend.export} refused: {data!r}")
        except BaseException:
            self.socket.close()
            raise

    def _take(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self.socket.recv(count - len(data))
            if not part:
                raise ConnectionError("the NBD server hung up")
            data += part
        return data

    def _request(self, command: int, offset: int, length: int, data: bytes = b"") -> bytes:
        self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, command, 7, offset, length) + data)
        magic, error, handle = struct.unpack(">IIQ", self._take(16))
        assert (magic, handle) == (0x67446698, 7)
        if error:
            raise OSError(error, os.strerror(error))
        return self._take(length) if command == 0 else b""

    def read(self, offset: int, length: int) -> bytes:
        return self._request(0, offset, length)

    def write(self, offset: int, data: bytes) -> None:
        self._request(1, offset, len(data), data)

    def flush(self) -> None:
        self._request(3, 0, 0)

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for offset in range(0, self.size, 1 << 20):
            digest.update(self.read(offset, min(1 << 20, self.size - offset)))
        return digest.hexdigest()

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> "Nbd":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def connect_within(backend: NbdBackend, seconds: float) -> Nbd:
    """Connect to an export that may be away for a moment, as a host's disk does."""
    end = time.monotonic() + seconds
    while True:
        try:
            return Nbd(backend)
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


@pytest.fixture
def nbd() -> type[Nbd]:
    return Nbd


@pytest.fixture
def reconnect() -> Callable[[NbdBackend, float], Nbd]:
    return connect_within


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="ot-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def make_daemon(folder: Path) -> Iterator[Callable[[str], Daemon]]:
    with contextlib.ExitStack() as stack:

        def make(name: str) -> Daemon:
            (folder / name).mkdir(exist_ok=True)
            daemon = Daemon(folder / name)
            daemon.start()
            stack.callback(daemon.stop)
            return daemon

        yield make


@pytest.fixture
def daemon(make_daemon: Callable[[str], Daemon]) -> Daemon:
    return make_daemon("a")


@pytest.fixture
def image(folder: Path) -> Path:
    """A raw image that is neither empty nor compressible."""
    path = folder / "source.raw"
    path.write_bytes(random.Random(1).randbytes(IMAGE_BYTES))
    return path


@pytest.fixture
def pool(folder: Path, image: Path) -> FilePool:
    pool = FilePool(folder / "pool")
    pool.add_image("debian", image)
    return pool


@pytest.fixture
async def make_attacher(folder: Path, pool: FilePool) -> AsyncIterator[Callable[..., Awaitable[VolumeAttacher]]]:
    made: list[VolumeAttacher] = []

    async def make(daemon: Daemon, **options: bool) -> VolumeAttacher:
        run_dir = Path(daemon.qmp).parent / "run"
        attacher = VolumeAttacher(qmp_socket=daemon.qmp, nbd_socket=daemon.nbd, pool=pool, run_dir=run_dir, **options)
        made.append(attacher)
        await attacher.start()
        return attacher

    yield make
    for attacher in made:
        await attacher.close()


@pytest.fixture
async def attacher(daemon: Daemon, make_attacher: Callable[..., Awaitable[VolumeAttacher]]) -> VolumeAttacher:
    return await make_attacher(daemon)


@pytest.fixture
def changes(attacher: VolumeAttacher) -> asyncio.Queue[None]:
    """One item for each time the daemon went away or came back."""
    queue: asyncio.Queue[None] = asyncio.Queue()
    attacher.subscribe(lambda: queue.put_nowait(None))
    return queue


@pytest.fixture
def iso() -> bytes:
    """The smallest thing that has an ISO 9660 volume descriptor."""
    content = bytearray(random.Random(2).randbytes(40 * 2048))
    content[32768:32775] = b"\x01CD001\x01"
    return bytes(content)


@pytest.fixture
def small_mount(folder: Path) -> Iterator[Path]:
    """A file system that is full soon: 9 MiB."""
    mount = folder / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=9M", "none", mount], check=True)
    yield mount
    subprocess.run(["umount", "-l", mount], check=True)


@pytest.fixture
def other_image(folder: Path, image: Path) -> Path:
    path = folder / "other.raw"
    path.write_bytes(image.read_bytes()[::-1])
    return path


@pytest.fixture
def two_gib(folder: Path) -> Path:
    path = folder / "two.raw"
    with open(path, "wb") as file:
        file.truncate(2 << 30)
        file.write(b"boot")
    return path


@pytest.fixture
def check_qcow2() -> Callable[[Path], None]:
    """Fails on a corrupt image. Leaked clusters (exit status 3) are what a kill may cost, and harm nothing."""

    def check(path: Path) -> None:
        done = subprocess.run(["qemu-img", "check", "-f", "qcow2", path], capture_output=True, text=True, check=False)
        assert done.returncode in (0, 3), done.stdout + done.stderr

    return check


@pytest.fixture
def flat() -> Callable[[Path], bytes]:
    """The content of a qcow2 file as the stock tool sees it, following names inside the file."""

    def read(path: Path) -> bytes:
        target = path.with_suffix(".flat")
        subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, target], check=True)
        content = target.read_bytes()
        target.unlink()
        return content

    return read
