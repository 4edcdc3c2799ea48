"""The volume attacher: makes volumes and offers them to the card as NBD exports of the SoC's storage daemon."""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

from opendpu.card.card import NbdBackend
from opendpu.errors import AlreadyExistsError, FailedPreconditionError, UnavailableError
from opendpu.storage.daemon import StorageDaemon
from opendpu.storage.files import disk_errors, replace
from opendpu.storage.formats import HEADER_BYTES, check_config_drive, check_no_reference, open_regular, parse_qcow2
from opendpu.storage.graph import Served, config_drive_node, node_name, volume_node
from opendpu.storage.model import ImageInfo, VolumeInfo, VolumeSpec, check_id
from opendpu.storage.pool import FilePool

__all__ = ["ImageInfo", "VolumeAttacher", "VolumeInfo"]

log = logging.getLogger(__name__)

_CONFIG_PREFIX = "config-"


class VolumeAttacher:
    """Volumes of a pool, served by one storage daemon.

    `write_through`: a write is acknowledged when it would survive the daemon's death. Without it the daemon keeps
    qcow2 metadata in memory until the host flushes; killed and started again, it answers the next flush with success
    and the writes before it are lost in silence. Turn it off only for data that may be lost.

    How much a host reads and writes is asked of the card (`Card.disk_counters`): qemu-storage-daemon does not account
    what goes through an NBD export (its query-blockstats shows zeros).

    All verbs are idempotent. Besides the errors each names they raise UnavailableError while the daemon is away.
    """

    def __init__(
        self, *, qmp_socket: str, nbd_socket: str, pool: FilePool, run_dir: Path, write_through: bool = True
    ) -> None:
        self._nbd_socket = nbd_socket
        self._pool = pool
        self._run_dir = run_dir
        self._write_through = write_through
        self._handlers: list[Callable[[], None]] = []
        self._daemon = StorageDaemon(qmp_socket, on_change=self._changed)
        self._lock = asyncio.Lock()  # one change of exports at a time: each looks first, then acts

    async def start(self) -> None:
        """Clean up after crashes and connect in the background."""
        with disk_errors(f"the folder {self._run_dir}"):
            self._run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        removed = await asyncio.to_thread(self._pool.clean)
        if removed:
            log.warning("removed what a crash left in the pool: %s", ", ".join(removed))
        self._daemon.start()

    async def close(self) -> None:
        """Disconnect; the exports go on."""
        await self._daemon.close()

    def subscribe(self, handler: Callable[[], None]) -> None:
        """Call `handler` when the daemon went away, and when it is back (with nothing in it, if it was restarted)."""
        self._handlers.append(handler)

    async def health(self) -> list[str]:
        problems = await asyncio.to_thread(self._pool.problems)
        if not self._daemon.connected:
            problems.append(f"the storage daemon does not answer on {self._daemon.path}; is it running?")
        return problems

    # ---- images and volumes ----

    async def images(self) -> list[ImageInfo]:
        return await asyncio.to_thread(self._pool.images)

    async def volumes(self) -> list[VolumeInfo]:
        users = await self._users()
        return await asyncio.to_thread(lambda: [self._info(spec, users) for spec in self._pool.specs()])

    async def volume(self, id: str) -> VolumeInfo:
        """Raises NotFoundError."""
        spec = await asyncio.to_thread(self._pool.spec, id)
        users = await self._users()
        return await asyncio.to_thread(self._info, spec, users)

    async def create_volume(self, id: str, *, image: str = "", size_bytes: int = 0) -> VolumeInfo:
        """Make a copy-on-write clone of an image, or a blank volume; durable when this returns.

        Raises NotFoundError (image), InvalidArgumentError (size, id), AlreadyExistsError (another specification),
        ResourceExhaustedError (disk full). Nothing is left behind by a failure.
        """
        spec = await asyncio.to_thread(self._pool.plan_volume, id, image, size_bytes)
        if not await asyncio.to_thread(self._pool.has_volume, spec):
            with self._pool.new_volume_file() as new:
                # For people's tools only; the daemon is told the base itself (graph.py).
                backing = self._pool.backing_name(image) if image else ""
                await self._daemon.make_qcow2(new, size_bytes=spec.size_bytes, backing=backing)
                await asyncio.to_thread(self._pool.keep_volume, new, spec)
        users = await self._users()
        return await asyncio.to_thread(self._info, spec, users)

    async def delete_volume(self, id: str) -> None:
        """Raises FailedPreconditionError while a disk uses it, here or on another server."""
        user = (await self._users()).get(check_id(id, "volume"))
        if user is not None:
            raise FailedPreconditionError(
                f"volume {id!r} is in use by disk {user!r}; delete the disk first", reason="VolumeInUse"
            )
        await asyncio.to_thread(self._pool.delete_volume, id)

    def _info(self, spec: VolumeSpec, users: dict[str, str]) -> VolumeInfo:
        user = users.get(spec.id, "")
        if not user and self._pool.in_use(spec.id):
            user = "another server"
        return VolumeInfo(spec.id, spec.image, spec.size_bytes, self._pool.allocated(spec.id), user)

    # ---- disks ----

    async def export_volume(self, disk_id: str, volume_id: str, *, read_only: bool) -> NbdBackend:
        """Serve a volume for a disk.

        Raises NotFoundError (volume), FailedPreconditionError (in use by another disk or server), AlreadyExistsError
        (the disk serves something else).
        """
        served = Served(check_id(disk_id, "disk"), check_id(volume_id, "volume"))
        async with self._lock:
            if await self._is_served(served, read_only=read_only):
                return self._backend(disk_id)
            user = (await self._users()).get(volume_id)
            if user is not None:
                raise FailedPreconditionError(
                    f"volume {volume_id!r} is in use by disk {user!r}; delete that disk first", reason="VolumeInUse"
                )
            node = await asyncio.to_thread(self._volume_node, served, read_only)
            return await self._serve(served, node, writable=not read_only)

    async def export_config_drive(self, disk_id: str, content: bytes) -> NbdBackend:
        """Serve an ISO 9660 image read-only, from a file that only its owner can read, until `unexport`.

        Raises InvalidArgumentError (no such image, or over 8 MiB), AlreadyExistsError (the disk serves something else).
        """
        served = Served(check_id(disk_id, "disk"), "")
        check_config_drive(content)
        path = self._config_path(disk_id)
        async with self._lock:
            same = await asyncio.to_thread(_holds, path, content)
            if await self._is_served(served, read_only=True):
                if same:
                    return self._backend(disk_id)
                raise AlreadyExistsError(f"disk {disk_id!r} serves another config drive; delete the disk first")
            with disk_errors("the config drive"):
                await asyncio.to_thread(replace, path, content)
            return await self._serve(served, config_drive_node(disk_id, path), writable=False)

    async def unexport(self, disk_id: str) -> None:
        """Stop serving a disk, all its writes on the pool's disk; forget its config drive. None such: nothing to do."""
        async with self._lock:
            await self._withdraw(check_id(disk_id, "disk"))
            await asyncio.to_thread(self._config_path(disk_id).unlink, missing_ok=True)

    async def exports(self) -> dict[str, NbdBackend]:
        """What the daemon serves now, by disk id."""
        return {served.disk: self._backend(served.disk) for served in await self._served()}

    # ---- inside ----

    async def _served(self) -> list[Served]:
        exports = await self._daemon.exports()
        return [served for name, live in exports.items() if live and (served := Served.parse(name)) is not None]

    async def _users(self) -> dict[str, str]:
        """Disk by volume."""
        return {served.volume: served.disk for served in await self._served() if served.volume}

    async def _is_served(self, wanted: Served, *, read_only: bool) -> bool:
        for served in await self._served():
            if served.disk != wanted.disk:
                continue
            found = (await self._daemon.nodes()).get(node_name(wanted.disk))
            if served == wanted and found == read_only:
                return True
            raise AlreadyExistsError(
                f"disk {wanted.disk!r} serves {'volume ' + served.volume if served.volume else 'a config drive'}"
                f"{' read-only' if found else ''}; delete the disk first"
            )
        return False

    async def _serve(self, served: Served, node: dict[str, object], *, writable: bool) -> NbdBackend:
        # An interrupted call may have left a node without an export, or an export on its way out.
        await self._withdraw(served.disk)
        await self._daemon.add_node(node)
        try:
            await self._daemon.add_export(
                served.export_id,
                node=node_name(served.disk),
                name=served.disk,
                writable=writable,
                write_through=writable and self._write_through,
            )
        except BaseException:
            with contextlib.suppress(FailedPreconditionError, UnavailableError):
                await self._daemon.remove_node(node_name(served.disk))
            raise
        return self._backend(served.disk)

    async def _withdraw(self, disk: str) -> None:
        for export in await self._daemon.exports():
            served = Served.parse(export)
            if served is not None and served.disk == disk:
                await self._daemon.remove_export(export)
        if node_name(disk) in await self._daemon.nodes():
            await self._daemon.remove_node(node_name(disk))

    def _volume_node(self, served: Served, read_only: bool) -> dict[str, object]:
        spec = self._pool.spec(served.volume)
        path = self._pool.volume_path(spec.id)
        _check_own_file(path, "volume")
        base = self._pool.image_path(spec.image) if spec.image else None
        if base is not None:
            self._pool.image(spec.image)
            _check_own_file(base, "image")
        return volume_node(served.disk, path, base, read_only=read_only)

    def _backend(self, disk: str) -> NbdBackend:
        return NbdBackend(socket=self._nbd_socket, export=disk)

    def _config_path(self, disk: str) -> Path:
        return self._run_dir / f"{_CONFIG_PREFIX}{disk}.iso"

    def _changed(self) -> None:
        for handler in self._handlers:
            handler()


def _check_own_file(path: Path, what: str) -> None:
    """A file of the pool must still be one that refers to nothing: a link or data file would open another's bytes."""
    fd = open_regular(path, what)
    try:
        check_no_reference(parse_qcow2(os.pread(fd, HEADER_BYTES, 0)))
    finally:
        os.close(fd)


def _holds(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() == content
    except FileNotFoundError:
        return False
