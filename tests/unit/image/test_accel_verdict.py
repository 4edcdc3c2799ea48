"""The accelerator's verdict is kept, and a damaged file of it is no obstacle."""

import json
from pathlib import Path

import pytest

from opendpu.lab import accel


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    asked: list[str] = []

    def boots(image: Path, kind: str) -> bool:
        asked.append(kind)
        return True

    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(accel, "_DEVICE", device)
    monkeypatch.setattr(accel, "boots", boots)
    return asked


def test_verdict_is_asked_once(tmp_path: Path, probes: list[str]) -> None:
    assert [accel.choose_accel(tmp_path, tmp_path / "image") for _ in range(3)] == ["kvm"] * 3
    assert probes == ["kvm"]


@pytest.mark.parametrize("damaged", ["", "[]", "{", '{"x": 1}'])
def test_damaged_verdicts_are_asked_again(tmp_path: Path, probes: list[str], damaged: str) -> None:
    (tmp_path / "accel.json").write_text(damaged)
    assert accel.choose_accel(tmp_path, tmp_path / "image") == "kvm"
    assert probes == ["kvm"]
    assert "kvm" in json.loads((tmp_path / "accel.json").read_text()).values()


def test_without_a_device_nothing_is_asked_or_kept(
    tmp_path: Path, probes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accel, "_DEVICE", tmp_path / "absent")
    assert accel.choose_accel(tmp_path, tmp_path / "image") == "tcg"
    assert probes == []
    assert not (tmp_path / "accel.json").exists()
