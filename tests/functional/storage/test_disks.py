"""Exports: what a real storage daemon serves, over agents' restarts, half-made states and hostile files."""

import asyncio
import hashlib
import os
import struct
from pathlib import Path

import pytest

from opendpu.card.card import NbdBackend
from opendpu.errors import AlreadyExistsError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from opendpu.storage.attacher import VolumeAttacher
from opendpu.storage.daemon import StorageDaemon
from opendpu.storage.graph import volume_node


async def test_export_is_idempotent_and_strict(attacher, daemon, nbd):
    await attacher.create_volume("v", image="debian")
    await attacher.create_volume("w", image="debian")
    backend = await attacher.export_volume("d", "v", read_only=False)
    assert backend == NbdBackend(daemon.nbd, "d")
    with nbd(backend) as disk:
        disk.write(0, b"a" * 512)
        assert await attacher.export_volume("d", "v", read_only=False) == backend
        assert disk.read(0, 512) == b"a" * 512  # the host's connection was not touched
    with pytest.raises(AlreadyExistsError, match="serves volume v"):
        await attacher.export_volume("d", "w", read_only=False)
    with pytest.raises(AlreadyExistsError, match="serves volume v"):
        await attacher.export_volume("d", "v", read_only=True)
    with pytest.raises(FailedPreconditionError, match="in use by disk 'd'"):
        await attacher.export_volume("e", "v", read_only=False)
    with pytest.raises(NotFoundError, match="no volume 'x'"):
        await attacher.export_volume("e", "x", read_only=False)
    assert await attacher.exports() == {"d": backend}


async def test_read_only_disk_refuses_writes(attacher, nbd, image):
    await attacher.create_volume("v", image="debian")
    with nbd(await attacher.export_volume("d", "v", read_only=True)) as disk:
        assert disk.flags & 2  # NBD_FLAG_READ_ONLY
        with pytest.raises(OSError, match=r"Invalid argument|Operation not permitted"):
            disk.write(0, b"a" * 512)
    with nbd((await attacher.exports())["d"]) as disk:
        assert disk.sha256() == hashlib.sha256(image.read_bytes()).hexdigest()


async def test_unexport_keeps_the_writes_and_cuts_the_host_off(attacher, pool, image, nbd, flat, check_qcow2):
    await attacher.create_volume("v", image="debian")
    disk = nbd(await attacher.export_volume("d", "v", read_only=False))
    disk.write(1 << 20, b"kept" * 1024)
    await attacher.unexport("d")
    await attacher.unexport("d")
    with pytest.raises(OSError, match=r".*"):
        disk.read(0, 512)
    disk.close()
    assert await attacher.exports() == {}
    expected = bytearray(image.read_bytes())
    expected[1 << 20 : (1 << 20) + 4096] = b"kept" * 1024
    assert flat(pool.volume_path("v")) == bytes(expected)
    check_qcow2(pool.volume_path("v"))


async def test_restarted_agent_finds_what_is_served(attacher, daemon, make_attacher, nbd, iso):
    await attacher.create_volume("v", image="debian")
    backend = await attacher.export_volume("d", "v", read_only=False)
    config = await attacher.export_config_drive("c", iso)
    with nbd(backend) as disk:
        await attacher.close()
        again = await make_attacher(daemon)
        assert await again.exports() == {"d": backend, "c": config}
        assert await again.export_volume("d", "v", read_only=False) == backend
        assert (await again.volume("v")).in_use_by == "d"
        disk.write(0, b"x" * 512)
        assert disk.read(0, 512) == b"x" * 512


async def test_half_made_export_heals(attacher, daemon, pool, nbd):
    await attacher.create_volume("v", image="debian")
    raw = StorageDaemon(daemon.qmp, on_change=lambda: None)
    await attacher.close()
    raw.start()
    await raw.add_node(volume_node("d", pool.volume_path("v"), pool.image_path("debian"), read_only=True))
    await raw.close()
    await attacher.start()
    with nbd(await attacher.export_volume("d", "v", read_only=False)) as disk:
        disk.write(0, b"x" * 512)


async def test_two_changes_of_a_disk_at_once_end_well(attacher, nbd):
    await attacher.create_volume("v", image="debian")
    calls = [attacher.export_volume("d", "v", read_only=False) for _ in range(4)]
    assert len(set(await asyncio.gather(*calls))) == 1
    await asyncio.gather(attacher.unexport("d"), attacher.unexport("d"))
    assert await attacher.exports() == {}


async def test_config_drive_is_served_read_only_and_forgotten(attacher, daemon, nbd, iso):
    backend = await attacher.export_config_drive("c", iso)
    assert await attacher.export_config_drive("c", iso) == backend
    (file,) = (Path(daemon.qmp).parent / "run").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    with nbd(backend) as disk:
        assert disk.sha256() == hashlib.sha256(iso).hexdigest()
        with pytest.raises(OSError, match=r"Invalid argument|Operation not permitted"):
            disk.write(0, bytes(512))
    assert file.read_bytes() == iso
    with pytest.raises(AlreadyExistsError, match="another config drive"):
        await attacher.export_config_drive("c", iso[:-4] + b"more")
    await attacher.unexport("c")
    assert not file.exists()
    for bad in (b"", iso[:32768], iso + bytes(100), iso + bytes(8 << 20), bytes(len(iso))):
        with pytest.raises(InvalidArgumentError, match="config drive"):
            await attacher.export_config_drive("c", bad)
    assert await attacher.exports() == {}


async def test_sockets_are_the_owners_alone(attacher, daemon):
    await attacher.exports()
    for path in (daemon.qmp, daemon.nbd):
        assert os.stat(path).st_mode & 0o077 == 0


async def test_volume_whose_file_points_elsewhere_is_not_followed(attacher, pool, folder, nbd, image):
    """A header that names another backing file, and a volume that became a link: neither opens the other file."""
    secret = folder / "s"
    secret.write_bytes(b"TOP SECRET".ljust(1 << 20, b"!"))
    await attacher.create_volume("v", image="debian")
    path = pool.volume_path("v")
    head = bytearray(path.read_bytes())
    at, length = struct.unpack_from(">QI", head, 8)
    name = str(secret).encode().ljust(length, b"\0")[:length]
    assert len(str(secret)) <= length, "the trap must fit"
    head[at : at + length] = name
    struct.pack_into(">I", head, 16, len(str(secret)))
    path.write_bytes(head)
    with nbd(await attacher.export_volume("d", "v", read_only=False)) as disk:
        assert disk.sha256() == hashlib.sha256(image.read_bytes()).hexdigest()
    await attacher.unexport("d")

    path.unlink()
    path.symlink_to(secret)
    with pytest.raises(InvalidArgumentError, match="link is not followed"):
        await attacher.export_volume("d", "v", read_only=False)


async def test_health_and_change_tell_of_the_daemon(attacher: VolumeAttacher, daemon, changes):
    await attacher.exports()
    assert await attacher.health() == []
    while not changes.empty():
        changes.get_nowait()
    daemon.kill()
    await asyncio.wait_for(changes.get(), 10)
    assert any("does not answer" in problem for problem in await attacher.health())
    daemon.start()
    await asyncio.wait_for(changes.get(), 10)
    assert await attacher.exports() == {}
    assert await attacher.health() == []
