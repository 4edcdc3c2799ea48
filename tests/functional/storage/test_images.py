"""Images from strangers: real qemu-img files of every dangerous shape, and what the pool makes of them."""

import os
import struct
import subprocess
from pathlib import Path

import pytest

from opendpu.errors import AlreadyExistsError, FailedPreconditionError, InvalidArgumentError
from opendpu.storage.pool import FilePool


def qemu_img(*arguments: object) -> None:
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture
def secret(folder: Path) -> Path:
    path = folder / "secret.raw"
    path.write_bytes(b"TOP SECRET".ljust(1 << 20, b"!"))
    return path


@pytest.fixture
def empty_pool(folder: Path) -> FilePool:
    return FilePool(folder / "empty")


def files(pool: FilePool) -> list[Path]:
    return list((pool.root / "images").iterdir())


def test_raw_and_qcow2_come_out_the_same(empty_pool, folder, image, flat):
    qemu_img("convert", "-f", "raw", "-O", "qcow2", "-c", image, folder / "i.qcow2")
    raw = empty_pool.add_image("raw", image)
    qcow2 = empty_pool.add_image("qcow2", folder / "i.qcow2")
    assert raw.size_bytes == qcow2.size_bytes == image.stat().st_size
    assert flat(empty_pool.image_path("raw")) == flat(empty_pool.image_path("qcow2")) == image.read_bytes()
    assert empty_pool.images() == [qcow2, raw]


def test_again_is_nothing_and_other_content_is_refused(empty_pool, image, other_image):
    first = empty_pool.add_image("i", image)
    inode = empty_pool.image_path("i").stat().st_ino
    assert empty_pool.add_image("i", image) == first
    assert empty_pool.image_path("i").stat().st_ino == inode
    with pytest.raises(AlreadyExistsError, match="other content"):
        empty_pool.add_image("i", other_image)
    empty_pool.remove_image("i")
    empty_pool.remove_image("i")
    assert files(empty_pool) == []


async def test_image_with_clones_stays(attacher, pool):
    await attacher.create_volume("v", image="debian")
    with pytest.raises(FailedPreconditionError, match="1 clones"):
        pool.remove_image("debian")
    await attacher.delete_volume("v")
    pool.remove_image("debian")
    assert await attacher.images() == []


def backing(folder: Path, secret: Path) -> Path:
    qemu_img("create", "-f", "qcow2", "-b", secret, "-F", "raw", folder / "bad")
    return folder / "bad"


def json_backing(folder: Path, secret: Path) -> Path:
    name = f'json:{{"driver":"raw","file":{{"driver":"file","filename":"{secret}"}}}}'
    qemu_img("create", "-f", "qcow2", "-u", "-b", name, "-F", "raw", folder / "bad", "1M")
    return folder / "bad"


def data_file(folder: Path, secret: Path) -> Path:
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={folder / 'd'},data_file_raw=on", folder / "bad", "1M")
    return folder / "bad"


def encrypted(folder: Path, secret: Path) -> Path:
    object_ = ("--object", "secret,id=s,data=pw")
    options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
    qemu_img("create", *object_, "-f", "qcow2", "-o", options, folder / "bad", "1M")
    return folder / "bad"


def truncated(folder: Path, secret: Path) -> Path:
    qemu_img("create", "-f", "qcow2", folder / "bad", "1M")
    os.truncate(folder / "bad", 60)
    return folder / "bad"


def absurd(folder: Path, secret: Path) -> Path:
    qemu_img("create", "-f", "qcow2", folder / "bad", "1M")
    with open(folder / "bad", "r+b") as file:
        file.seek(24)
        file.write(struct.pack(">Q", 1 << 62))
    return folder / "bad"


def broken_tables(folder: Path, secret: Path) -> Path:
    qemu_img("create", "-f", "qcow2", folder / "bad", "1M")
    with open(folder / "bad", "r+b") as file:
        file.seek(40)
        file.write(struct.pack(">Q", (1 << 62) + 3))  # the L1 table's offset
    return folder / "bad"


def vmdk(folder: Path, secret: Path) -> Path:
    qemu_img("create", "-f", "vmdk", folder / "bad", "1M")
    return folder / "bad"


def directory(folder: Path, secret: Path) -> Path:
    (folder / "bad").mkdir()
    return folder / "bad"


def link(folder: Path, secret: Path) -> Path:
    (folder / "bad").symlink_to(secret)
    return folder / "bad"


def pipe(folder: Path, secret: Path) -> Path:
    os.mkfifo(folder / "bad")
    return folder / "bad"


def missing(folder: Path, secret: Path) -> Path:
    return folder / "bad"


def json_name(folder: Path, secret: Path) -> Path:
    return Path(f'json:{{"driver":"file","filename":"{secret}"}}')


def cut_raw(folder: Path, secret: Path) -> Path:
    (folder / "bad").write_bytes(bytes(1000))
    return folder / "bad"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (backing, "backing file"),
        (json_backing, "backing file"),
        (data_file, "another file"),
        (encrypted, "encrypted"),
        (truncated, "cut off"),
        (absurd, "at most"),
        (broken_tables, "can't be read"),
        (vmdk, "VMDK"),
        (directory, "no plain file"),
        (link, "not followed"),
        (pipe, "no plain file"),
        (missing, "No such file"),
        (json_name, "No such file"),
        (cut_raw, "multiple of 512"),
    ],
)
def test_dangerous_image_is_refused_and_leaves_nothing(empty_pool, folder, secret, make, words):
    with pytest.raises(InvalidArgumentError, match=words):
        empty_pool.add_image("bad", make(folder, secret))
    assert files(empty_pool) == []


def test_qcow2_inside_a_raw_image_is_bytes_only(empty_pool, folder, secret, flat):
    """After the first sector a qcow2 header is a tenant's data; the disk must show these very bytes."""
    content = bytes(512) + backing(folder, secret).read_bytes()
    content += bytes(-len(content) % 512)
    (folder / "raw").write_bytes(content)
    empty_pool.add_image("raw", folder / "raw")
    assert flat(empty_pool.image_path("raw")) == content


async def test_guest_that_writes_a_qcow2_header_on_its_disk_gets_bytes_back(attacher, folder, secret, nbd):
    header = backing(folder, secret).read_bytes()[:65536]
    await attacher.create_volume("v", size_bytes=1 << 20)
    with nbd(await attacher.export_volume("d", "v", read_only=False)) as disk:
        disk.write(0, header)
        disk.flush()
    await attacher.unexport("d")
    with nbd(await attacher.export_volume("d", "v", read_only=False)) as disk:
        assert disk.read(0, len(header)) == header
        assert disk.size == 1 << 20
