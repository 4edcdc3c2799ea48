"""`opendpu demo`: the main job from nothing to the last proof."""

import time
from pathlib import Path

import click

from opendpu.cli.show import show, stopwatch
from opendpu.lab.layout import DEFAULT_NAME, Layout


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=Path("build/demo"), show_default=True,
              help="Folder for report.json and timeline.svg.")  # fmt: skip
@click.option("--lab", "lab_name", default=DEFAULT_NAME, show_default=True, help="Name of the lab.")
def demo(output: Path, lab_name: str) -> None:
    """Two bare-metal servers boot from cloud volumes through their DPUs; everything is proved with traffic and data.

    The lab is brought up when it is not, and left up: play on with `opendpu lab`, or end it with `opendpu lab down`.
    """
    from opendpu.lab.lab import Lab
    from opendpu.lab.openstack_client import OpenStackShell
    from opendpu.lab.scenario.main_job import MainJob

    say = stopwatch()
    start = time.monotonic()
    lab = Lab(Layout.make(lab_name), progress=say)
    lab.up()
    up_s = round(time.monotonic() - start, 1)
    with OpenStackShell(environment=lab.central.environment(), netns=lab.layout.management) as shell:
        job = MainJob(lab, shell, say)
        job.report.seconds["lab up"] = up_s
        try:
            job.run()
        finally:
            job.report.seconds["total"] = round(time.monotonic() - start, 1)
            job.report.write(output)
    for name, server in job.report.servers.items():
        show(server["stages"], "table", title=f"{name}, in seconds")
    proofs = job.report.proofs.values()
    show([{"proof": p.name, "holds": p.ok, "measured": _short(p.measured)} for p in proofs], "table", title="Proofs")
    say(f"all proofs hold; report: {output}/report.json, picture: {output}/timeline.svg")
    say("the lab is still up; play on with: opendpu lab deploy server1; opendpu lab ssh server1; opendpu lab down")


def _short(measured: dict[str, object]) -> str:
    """The plain figures among what was measured."""
    return ", ".join(f"{key} {value}" for key, value in measured.items() if isinstance(value, int | float))
