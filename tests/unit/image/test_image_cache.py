"""The images' cache: what counts as built, and what a source list is made of."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opendpu.errors import FailedPreconditionError, InvalidArgumentError, UnavailableError
from opendpu.lab.image import KINDS, build_image, cache, locate
from opendpu.lab.image.disk import Identity
from opendpu.lab.image.tools import Tools, apt_sources, require, silent


def test_key_follows_content_and_names_of_recipe_files(tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates/a").write_text("one")
    first = cache.recipe_key(tmp_path)
    assert cache.recipe_key(tmp_path) == first
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__/a.pyc").write_text("compiled")
    assert cache.recipe_key(tmp_path) == first
    (tmp_path / "templates/a").write_text("two")
    second = cache.recipe_key(tmp_path)
    (tmp_path / "templates/a").rename(tmp_path / "templates/b")
    assert len({first, second, cache.recipe_key(tmp_path)}) == 3


def test_unknown_kind_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="no image 'gentoo'; the lab has debian, tiny"):
        build_image("gentoo", tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_built_image_is_taken_from_the_cache(kind: str, tmp_path: Path) -> None:
    image = locate(kind, tmp_path)
    image.write_bytes(b"image")
    said: list[str] = []
    assert build_image(kind, tmp_path, said.append) == image
    assert said == ["from the cache"]


def test_failed_build_leaves_nothing_and_the_next_one_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(work: Path, key: str, tools: Tools) -> Path:
        (work / "tiny.qcow2").write_bytes(b"half")
        tools.run("sh", "-c", "echo the mirror is away; exit 3")
        raise AssertionError

    def works(work: Path, key: str, tools: Tools) -> Path:
        (work / "tiny.qcow2").write_bytes(b"whole")
        return work / "tiny.qcow2"

    # Real builders need root and programs; these need neither.
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(cache, "require", lambda programs: None)
    monkeypatch.setitem(cache._BUILDERS, "tiny", fails)
    with pytest.raises(UnavailableError, match="the mirror is away"):
        build_image("tiny", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".tiny.lock"]

    (tmp_path / ".tiny-build-killed").mkdir()  # what a killed builder leaves
    outdated = tmp_path / "tiny-0123456789abcdef.qcow2"
    outdated.write_bytes(b"old")
    monkeypatch.setitem(cache._BUILDERS, "tiny", works)
    image = build_image("tiny", tmp_path)
    assert image.read_bytes() == b"whole"
    assert {path.name for path in tmp_path.iterdir()} == {".tiny.lock", image.name}


def test_missing_program_says_which_package_to_install() -> None:
    require({"sh": "dash"})
    with pytest.raises(FailedPreconditionError, match="apt-get install no-such-package"):
        require({"sh": "dash", "no-such-program": "no-such-package"})


def test_a_step_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="timed out"):
        Tools(tmp_path, silent).run("sleep", "60", timeout=0.2)


def test_sources_are_debian_12s_own_suites_each_once() -> None:
    lines = [
        "Debian|bookworm|http://mirror.example/debian/|main",
        "Debian|bookworm|http://mirror.example/debian/|main",
        "Debian|bookworm-security|http://mirror.example/debian-security/|main",
        "Ubuntu|noble|http://mirror.example/ubuntu/|main",
        "Other|bookworm|http://mirror.example/other/|main",
    ]
    assert apt_sources(lines).splitlines() == [
        "deb http://mirror.example/debian/ bookworm main",
        "deb http://mirror.example/debian-security/ bookworm-security main",
    ]


@given(st.text(min_size=1), st.text())
def test_identity_is_fixed_by_the_recipe_and_differs_by_kind(kind: str, key: str) -> None:
    identity = Identity.of(kind, key)
    assert identity == Identity.of(kind, key)
    assert identity.filesystem != identity.partition
    assert identity != Identity.of(kind + "x", key)
