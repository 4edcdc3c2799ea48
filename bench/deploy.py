"""How long the control plane takes to deploy a server: python bench/deploy.py [--rounds N] [--out FILE].

Brings the lab up (idempotent), deploys one of its servers N times from the tiny image, undeploys it each time, and
writes medians as JSON, with a plot beside it (FILE with .svg):

    control_plane_s   from the order to the BMC's power-on (issue: at most 5 s)
    agent_s           the time in it during which the agent was making a disk or a NIC ready (at most 0.5 s); it waits
                      for OVN's flows in that time, and not while Ironic speaks with Neutron between disks and NICs
    clone_s           a copy-on-write clone of the lab's 2 GiB Debian image, by one call of the agent (under 0.2 s)
    full_copy_s       what a user would do instead: a copy of that image's file, on disk, in the same run

All times come from the driver's timeline on the node and from the agent's own stages; success is an `active` node.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from opendpu.agent.client import AgentClient
from opendpu.agent.v1 import agent_pb2 as pb
from opendpu.lab.enrol import enrol
from opendpu.lab.lab import IMAGES, Lab
from opendpu.lab.layout import DEFAULT_NAME, Layout
from opendpu.lab.openstack_client import OpenStackShell
from opendpu.lab.scenario import timeline
from opendpu.lab.scenario.main_job import ORDER, POWER_ON
from opendpu.lab.scenario.tenant import Tenant

CLONES = 10


def seconds_covered(intervals: Iterable[tuple[float, float]]) -> float:
    """How long at least one of the intervals lasted."""
    total, end = 0.0, float("-inf")
    for first, last in sorted(intervals):
        total += max(0.0, last - max(first, end))
        end = max(end, last)
    return total


def making(resources: Sequence[pb.Disk | pb.Interface]) -> list[tuple[float, float]]:
    """From each resource's acceptance to its last stage, seconds since the epoch by the card's clock."""
    ended = [[stage.ended.ToNanoseconds() / 1e9 for stage in resource.status.stages] for resource in resources]
    return [(times[0], times[-1]) for times in ended]


def one_deploy(tenant: Tenant, agent: AgentClient, name: str) -> dict[str, Any]:
    """Deploy, read what was noted, undeploy."""
    tenant.deploy(name, image=IMAGES["tiny"], size_gib=1)
    tenant.wait_active(name)
    moments = tenant.timeline(name)
    disks, nics = making(agent.list_disks()), making(agent.list_interfaces())
    tenant.undeploy(name)
    return {
        "control_plane_s": timeline.between(moments, ORDER, POWER_ON),
        "agent_s": round(seconds_covered([*disks, *nics]), 3),
        "disk_s": round(max(last - first for first, last in disks), 3),
        "nic_s": round(max(last - first for first, last in nics), 3),
        "stages": {stage.name: stage.seconds for stage in timeline.stages(moments)},
    }


def clone_times(agent: AgentClient, rounds: int) -> list[float]:
    """Seconds from the call to its answer, when the clone is on disk."""
    times = []
    for _ in range(rounds):
        volume = f"bench-{uuid.uuid4().hex[:8]}"
        began = time.monotonic()
        agent.create_volume(volume, image=IMAGES["debian"])
        times.append(time.monotonic() - began)
        agent.delete_volume(volume)
    return times


def full_copy(lab: Lab) -> float:
    source = lab.pool.image_path(IMAGES["debian"])
    target = lab.layout.state / f".bench-{os.getpid()}.qcow2"
    began = time.monotonic()
    try:
        shutil.copyfile(source, target)
        subprocess.run(["sync", target], check=True)
        return time.monotonic() - began
    finally:
        target.unlink(missing_ok=True)


def run(lab: Lab, name: str, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    lab.up(images=("debian", "tiny"))
    server = lab.server(name)
    with (
        OpenStackShell(environment=lab.central.environment(), netns=lab.layout.management) as shell,
        lab.agent(server) as agent,
    ):
        enrol(lab, shell)
        tenant = Tenant(lab, shell)
        tenant.prepare()
        if tenant.state(server.name) != "available":
            raise SystemExit(f"{server.name} is in use; run first: opendpu lab undeploy {server.name}")
        clones, copy_s = clone_times(agent, CLONES), full_copy(lab)
        deploys = []
        for number in range(rounds):
            deploy = one_deploy(tenant, agent, server.name)
            say(f"deploy {number + 1}: control plane {deploy['control_plane_s']} s, agent {deploy['agent_s']} s")
            deploys.append(deploy)
    return report(lab, deploys, clones, copy_s)


def report(lab: Lab, deploys: list[dict[str, Any]], clones: list[float], copy_s: float) -> dict[str, Any]:
    def median(key: str) -> float:
        return round(float(statistics.median(deploy[key] for deploy in deploys)), 3)

    clone_s = statistics.median(clones)
    return {
        "rounds": len(deploys),
        "accel": lab.settings.accel,
        "cpus": os.cpu_count(),
        "control_plane_s": median("control_plane_s"),
        "agent_s": median("agent_s"),
        "disk_s": median("disk_s"),
        "nic_s": median("nic_s"),
        "clone_s": round(clone_s, 4),
        "clone_max_s": round(max(clones), 4),
        "full_copy_s": round(copy_s, 2),
        "copy_over_clone": round(copy_s / clone_s, 1),
        "deploys": deploys,
    }


def draw(path: Path, measured: dict[str, Any]) -> None:
    """One bar a deploy, up to the power-on, a colour a stage."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 1.8 + 0.4 * measured["rounds"]), layout="constrained")
    colours: dict[str, Any] = {}
    for row, deploy in enumerate(measured["deploys"]):
        left = 0.0
        for stage, seconds in deploy["stages"].items():
            colour = colours.setdefault(stage, plt.get_cmap("tab10")(len(colours) % 10))
            label = stage if row == 0 else None
            axes.barh(row, seconds, left=left, color=colour, edgecolor="white", label=label)
            left += seconds
            if stage == POWER_ON:
                break
    axes.set_yticks(range(measured["rounds"]), [str(number + 1) for number in range(measured["rounds"])])
    axes.invert_yaxis()
    axes.set_xlabel("seconds since the order")
    axes.set_ylabel("deploy")
    axes.set_title(
        f"Order to power-on: median {measured['control_plane_s']} s, of it the agent {measured['agent_s']} s"
    )
    axes.legend(ncols=3, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.25), frameon=False)
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lab", default=DEFAULT_NAME, help="name of the lab")
    parser.add_argument("--server", default="server1", help="it must not be deployed")
    parser.add_argument("--out", type=Path, default=Path("build/bench/deploy.json"))
    options = parser.parse_args()

    def say(text: str) -> None:
        print(f"  {text}", flush=True)

    measured = run(Lab(Layout.make(options.lab), progress=say), options.server, options.rounds, say)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(measured, indent=2) + "\n")
    draw(options.out.with_suffix(".svg"), measured)
    print(json.dumps({key: value for key, value in measured.items() if key != "deploys"}, indent=2))


if __name__ == "__main__":
    main()
