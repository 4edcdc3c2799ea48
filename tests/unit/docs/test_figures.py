"""The figures that go into the documents: from a report's numbers to tables, and a deploy's stages to seconds."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[3]


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DEMO = {
    "ok": True,
    "seconds": {"total": 250.5},
    "servers": {
        "server1": {
            "control_plane_s": 2.7,
            "stages": [
                {"name": "volume-cloned", "start": 0.0, "seconds": 0.6},
                {"name": "power-on-done", "start": 0.6, "seconds": 2.1},
            ],
        }
    },
    "proofs": {
        name: {"name": name, "ok": True, "measured": {"facts": {}, "well_after_s": 1.5, "restarted_after_s": 0.05}}
        for name in ("agent_kill", "storage_kill", "vswitchd_kill", "soc_reboot")
    },
}  # fmt: skip


def test_tables() -> None:
    figures = load("scripts/figures.py")
    assert "| power-on-done | 2.7 s |" in figures.stages(DEMO, {})
    assert "| `agent_kill` | yes | well_after_s 1.5, restarted_after_s 0.05 |" in figures.proofs(DEMO, {})
    assert "| opendpu-agent | 0.05 s | 1.5 s |  |  |" in figures.recovery(DEMO, {})
    measured = figures.figures(DEMO, {"storage_clone": {"clone_2gib_median_s": 0.016}})
    assert "| Clone of a 2 GiB image, median | 0.2 s | 0.016 s | `make bench` |" in measured
    assert "| Whole demo, after set-up | 300 s | 250.5 s | `make demo` |" in measured
    assert "not measured: `make bench`" in measured, "what is missing is not made up"


@pytest.mark.parametrize("report", [None, '{"ok": false}'], ids=["none", "failed"])
def test_documents_are_left_alone_without_a_good_demo(report: str | None, tmp_path: Path, monkeypatch) -> None:
    figures = load("scripts/figures.py")
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    if report is not None:
        (tmp_path / "build/demo").mkdir(parents=True)
        (tmp_path / "build/demo/report.json").write_text(report)
    assert figures.main() == 1
    assert "README" not in str(list(tmp_path.rglob("*")))


@pytest.mark.parametrize(
    ("intervals", "seconds"),
    [([], 0.0), ([(0, 1), (3, 4)], 2.0), ([(0, 2), (1, 3)], 3.0), ([(0, 5), (1, 2)], 5.0), ([(3, 4), (0, 1)], 2.0)],
)
def test_the_agents_part_counts_each_moment_once(intervals: list[tuple[float, float]], seconds: float) -> None:
    assert load("bench/deploy.py").seconds_covered(intervals) == seconds


def test_certificates_as_the_operators_guide_makes_them(tmp_path: Path, monkeypatch) -> None:
    text = (ROOT / "docs" / "operators-guide.md").read_text()
    first = text.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(compile(first, "operators-guide.md", "exec"), {})
    made = {path.name for path in (tmp_path / "opendpu-ca").iterdir()}
    assert {"ca.pem", "agent-soc1.pem", "agent-soc1.key", "chassis-soc1.pem", "conductor.pem", "observer.pem"} <= made
