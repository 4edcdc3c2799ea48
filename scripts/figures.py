#!/usr/bin/env python3
"""Writes measured figures into README.md and docs/: python scripts/figures.py, after `make demo` and `make bench`.

Takes build/demo and build/bench/*.json and fills the tables between <!-- figures:NAME --> and <!-- /figures -->, so
that no figure in the documents is typed by hand. A line that has nothing measured says what to run.
"""

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "recovery.md")
_BLOCK = re.compile(r"(<!-- figures:(\w+) -->\n).*?(<!-- /figures -->)", re.DOTALL)

Report = dict[str, Any]


def table(head: str, rows: Iterable[Iterable[object]]) -> str:
    columns = head.split("|")
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(str(cell).strip() for cell in line)} |\n" for line in lines)


def seconds(value: float | None, source: str) -> str:
    return f"not measured: `{source}`" if value is None else f"{value:g} s"


def stages(demo: Report, _: Report) -> str:
    """Seconds since the order, a column a server."""
    servers = demo["servers"]
    names = list(dict.fromkeys(stage["name"] for server in servers.values() for stage in server["stages"]))
    at = {
        server: {stage["name"]: stage["start"] + stage["seconds"] for stage in body["stages"]}
        for server, body in servers.items()
    }
    rows = [[name, *(f"{at[server][name]:.1f} s" if name in at[server] else "" for server in at)] for name in names]
    return table("|".join(["reached", *at]), rows)


def proofs(demo: Report, _: Report) -> str:
    def plain(measured: Report) -> str:
        figures = {k: v for k, v in measured.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        return ", ".join(f"{key} {value}" for key, value in figures.items())

    rows = [[f"`{p['name']}`", "yes" if p["ok"] else "NO", plain(p["measured"])] for p in demo["proofs"].values()]
    return table("proof|holds|measured", rows)


def figures(demo: Report, bench: Report) -> str:
    deploy, clone = bench.get("deploy", {}), bench.get("storage_clone", {})
    in_demo = ", ".join(f"{server['control_plane_s']:g} s" for server in demo["servers"].values())
    rows = [
        ["Deploy: from the order to the BMC's power-on, median", "5 s",
         seconds(deploy.get("control_plane_s"), "make bench"), "`make bench`"],
        ["The same, both servers at once in the demo", "", in_demo, "`make demo`"],
        ["of it the agent: disk and NIC ready", "0.5 s", seconds(deploy.get("agent_s"), "make bench"), "`make bench`"],
        ["Clone of a 2 GiB image, median", "0.2 s", seconds(clone.get("clone_2gib_median_s"), "make bench"),
         "`make bench`"],
        ["A full copy of it, in the same run", "", seconds(clone.get("full_copy_2gib_s"), "make bench"),
         "`make bench`"],
        ["Whole demo, after set-up", "300 s", seconds(demo["seconds"]["total"], "make demo"), "`make demo`"],
    ]  # fmt: skip
    return table("what|at most|measured|how to repeat", rows)


def recovery(demo: Report, _: Report) -> str:
    names = {
        "agent_kill": "opendpu-agent",
        "storage_kill": "qemu-storage-daemon",
        "vswitchd_kill": "ovs-vswitchd",
        "soc_reboot": "every process of the SoC at once",
    }
    keys = ("restarted_after_s", "well_after_s", "stream_pause_s", "disk_pause_s")
    rows = []
    for proof, killed in names.items():
        measured = demo["proofs"][proof]["measured"]
        rows.append([killed, *(f"{measured[key]:g} s" if key in measured else "" for key in keys)])
    return table("killed|started again after|all ready after|longest pause of the TCP stream|of disk writes", rows)


BLOCKS: dict[str, Callable[[Report, Report], str]] = {
    "stages": stages,
    "proofs": proofs,
    "figures": figures,
    "recovery": recovery,
}


def main() -> int:
    try:
        demo = json.loads((ROOT / "build/demo/report.json").read_text())
    except FileNotFoundError:
        print("figures: there is no build/demo/report.json; run first: make demo", file=sys.stderr)
        return 1
    if not demo["ok"]:
        print("figures: the last demo failed; its figures are not for the documents", file=sys.stderr)
        return 1
    bench = {path.stem: json.loads(path.read_text()) for path in (ROOT / "build/bench").glob("*.json")}
    for path in DOCUMENTS:
        text = _BLOCK.sub(lambda m: m[1] + BLOCKS[m[2]](demo, bench) + m[3], path.read_text())
        path.write_text(text)
        print(f"figures: {path.relative_to(ROOT)}")
    shutil.copyfile(ROOT / "build/demo/timeline.svg", ROOT / "docs/img/timeline.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
