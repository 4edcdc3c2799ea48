import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opendpu.errors import FailedPreconditionError, InvalidArgumentError, ResourceExhaustedError
from opendpu.qmp import CommandError
from opendpu.storage.daemon import refused
from opendpu.storage.formats import check_config_drive, identify
from opendpu.storage.graph import Served, node_name
from opendpu.storage.model import check_id, check_image_name, check_size
from opendpu.storage.program import daemon_command

IDS = st.from_regex(r"[a-z0-9-]{1,48}", fullmatch=True)


def qcow2(*, version=3, backing=0, cluster_bits=16, size=1 << 30, crypt=0, incompatible=0) -> bytes:
    head = struct.pack(
        ">4sIQIIQIIQQIIQ", b"QFI\xfb", version, backing, 9, cluster_bits, size, crypt, 1, 196608, 65536, 1, 0, 0
    )
    return head + struct.pack(">QQQII", incompatible, 0, 0, 4, 104) + bytes(8)


def test_plain_images_are_identified():
    assert identify(qcow2(), 200_000) == ("qcow2", 1 << 30)
    assert identify(qcow2(version=2), 200_000) == ("qcow2", 1 << 30)
    assert identify(b"\xeb\x63\x90" + bytes(109), 1 << 20) == ("raw", 1 << 20)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (qcow2(backing=400), "backing file"),
        (qcow2(version=2, backing=400), "backing file"),
        (qcow2(incompatible=1 << 2), "another file"),
        (qcow2(incompatible=1 << 1), "corrupt"),
        (qcow2(incompatible=1 << 40), "not known"),
        (qcow2(crypt=1), "encrypted"),
        (qcow2(crypt=2), "encrypted"),
        (qcow2(version=4), "version 4"),
        (qcow2(cluster_bits=63), "cluster size"),
        (qcow2(size=0), "positive multiple"),
        (qcow2(size=1 << 63), "at most"),
        (qcow2()[:71], "cut off"),
        (qcow2()[:80], "cut off"),
        (b"\x1f\x8b\x08" + bytes(100), "gzip"),
        (b"", "cut off"),
    ],
)
def test_unusable_images_are_refused_with_a_reason(head, words):
    with pytest.raises(InvalidArgumentError, match=words):
        identify(head, len(head))


@given(st.binary(max_size=200), st.integers(0, 1 << 63), st.booleans())
def test_any_bytes_are_identified_or_refused(head, size, magic):
    try:
        kind, bytes_ = identify(b"QFI\xfb" + head if magic else head, size)
    except InvalidArgumentError:
        return
    assert kind in ("raw", "qcow2")
    assert bytes_ % 512 == 0
    assert bytes_ > 0


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_no_accepted_qcow2_refers_to_anything(backing, crypt, incompatible, size):
    try:
        identify(qcow2(backing=backing, crypt=crypt, incompatible=incompatible, size=size), 1 << 20)
    except InvalidArgumentError:
        return
    assert backing == 0
    assert crypt == 0
    assert incompatible & 0b110 == 0


@given(st.binary(max_size=64))
def test_any_bytes_are_no_config_drive(content):
    with pytest.raises(InvalidArgumentError):
        check_config_drive(content)


def test_config_drive_must_be_iso():
    good = bytearray(40 * 2048)
    good[32769:32774] = b"CD001"
    check_config_drive(bytes(good))
    with pytest.raises(InvalidArgumentError, match="at most"):
        check_config_drive(bytes(good) + bytes(8 << 20))


@given(IDS, IDS)
def test_export_id_tells_disk_and_volume(disk, volume):
    for served in (Served(disk, volume), Served(disk, "")):
        assert Served.parse(served.export_id) == served
    assert len(node_name(disk)) == 31


@given(st.text(max_size=80))
def test_foreign_export_ids_are_not_ours_or_parse(text):
    served = Served.parse(text)
    assert served is None or served.export_id == text


@given(st.text(max_size=60))
def test_ids_and_names_never_hold_a_path(text):
    for check in (lambda: check_id(text, "volume"), lambda: check_image_name(text)):
        try:
            good = check()
        except InvalidArgumentError:
            continue
        assert "/" not in good
        assert not good.startswith(".")


@pytest.mark.parametrize("size", [0, -512, 511, 513, (64 << 40) + 512])
def test_sizes(size):
    with pytest.raises(InvalidArgumentError, match="multiple of 512"):
        check_size(size, "volume")


def test_refusals_keep_their_meaning():
    assert isinstance(refused("x", "Could not write: No space left on device"), ResourceExhaustedError)
    assert isinstance(refused("x", 'Failed to get shared "write" lock'), FailedPreconditionError)
    assert isinstance(refused("x", "anything else"), CommandError)


@pytest.mark.parametrize("path", ["/run/" + "x" * 120, "/run/a,b"])
def test_daemon_command_refuses_what_qemu_would_misread(path):
    with pytest.raises(ValueError, match="socket path"):
        daemon_command(path, "/run/nbd")
