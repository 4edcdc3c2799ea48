import json
import os

import pytest

from opendpu.errors import AlreadyExistsError, NotFoundError, OpenDPUError
from opendpu.storage import files
from opendpu.storage.locks import file_lock, image_in_use, image_to_myself
from opendpu.storage.model import VolumeSpec
from opendpu.storage.pool import FilePool

SPEC = VolumeSpec("v", "", 1 << 20)


@pytest.fixture
def pool(tmp_path):
    return FilePool(tmp_path / "pool")


def make(pool, spec=SPEC):
    with pool.new_volume_file() as new:
        pool.keep_volume(new, spec)


def names(pool):
    return sorted(path.name for path in (pool.root / "volumes").iterdir())


def test_folders_are_the_owners_alone(pool):
    assert pool.root.stat().st_mode & 0o777 == 0o700


def test_kept_volume_counts_and_dropped_one_does_not(pool):
    with pool.new_volume_file():
        assert pool.specs() == []
    assert names(pool) == []
    make(pool)
    assert pool.specs() == [SPEC]
    with pytest.raises(AlreadyExistsError):
        make(pool, VolumeSpec("v", "", 2 << 20))
    assert names(pool) == ["v.json", "v.qcow2"]


def test_first_of_two_makers_wins(pool):
    with pool.new_volume_file() as one, pool.new_volume_file() as two:
        one.write_bytes(b"one")
        two.write_bytes(b"two")
        pool.keep_volume(one, SPEC)
        pool.keep_volume(two, SPEC)
    assert pool.volume_path("v").read_bytes() == b"one"


def test_image_removed_while_cloning_is_noticed(pool):
    with pool.new_volume_file() as new, pytest.raises(NotFoundError):
        pool.keep_volume(new, VolumeSpec("v", "gone", 512))
    assert names(pool) == []


@pytest.mark.parametrize("step", ["record", "data"])
def test_crash_at_any_step_leaves_nothing_that_counts(pool, monkeypatch, step):
    """The process ends (here: an error nobody handles) before the record, or the data file, is in place."""

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "replace" if step == "record" else "sync_file", die)
    with pool.new_volume_file() as new, pytest.raises(KeyboardInterrupt):
        pool.keep_volume(new, SPEC)
    monkeypatch.undo()
    assert pool.specs() == []
    pool.clean()
    assert names(pool) == []
    make(pool)
    assert pool.specs() == [SPEC]


def test_clean_spares_what_is_being_made(pool):
    with pool.new_volume_file() as new:
        assert pool.clean() == []
        assert new.exists()
    (pool.root / "volumes" / ".new-1.qcow2").touch()
    assert pool.clean() == [".new-1.qcow2"]


def test_delete_of_a_half_deleted_volume(pool):
    make(pool)
    (pool.root / "volumes" / "v.json").unlink()
    pool.delete_volume("v")
    pool.delete_volume("v")
    assert names(pool) == []


@pytest.mark.parametrize("content", ["", "[]", "{", "\0"])
def test_spoiled_record_is_said(pool, content):
    make(pool)
    (pool.root / "volumes" / "v.json").write_text(content)
    with pytest.raises(OpenDPUError, match="changed by hand"):
        pool.spec("v")


def test_records_are_whole_files(pool):
    make(pool)
    assert json.loads((pool.root / "volumes" / "v.json").read_bytes()) == {"image": "", "size_bytes": 1 << 20}


def test_image_lock_is_seen_by_others_and_goes_with_its_holder(tmp_path):
    path = tmp_path / "i"
    path.write_bytes(b"")
    assert not image_in_use(path)
    assert not image_in_use(tmp_path / "none")
    with image_to_myself(path) as mine:
        assert mine
        assert image_in_use(path)
        with image_to_myself(path) as second:
            assert not second
    assert not image_in_use(path)


def test_file_lock_is_exclusive_or_shared(tmp_path):
    path = tmp_path / "lock"
    with file_lock(path, shared=True), file_lock(path, shared=True), file_lock(path, wait=False) as alone:
        assert not alone
    with file_lock(path, wait=False) as alone:
        assert alone
    assert os.stat(path).st_mode & 0o777 == 0o600
