"""The main job, shown and proved: two bare-metal servers boot from cloud volumes through their DPUs.

`run` does it from the lab's start to the last proof and writes build/demo/report.json and timeline.svg. A proof that
fails is in the report too, and the run fails at its end.
"""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from opendpu.lab.enrol import enrol
from opendpu.lab.lab import Lab
from opendpu.lab.openstack_client import OpenStackShell
from opendpu.lab.scenario import hotplug_proofs, network_proofs, recovery_proofs, timeline
from opendpu.lab.scenario.guest import Guest
from opendpu.lab.scenario.proof import Proof, proving
from opendpu.lab.scenario.tenant import Tenant
from opendpu.lab.scenario.undeploy_proof import undeploy_clean
from opendpu.lab.server import Server

Say = Callable[[str], None]

ORDER = "deploy-requested"
POWER_ON = "power-on-done"
SSH = "ssh-login"
CLOUD_INIT = "cloud-init-done"


@dataclass
class Report:
    """What build/demo/report.json holds."""

    started: str
    accel: str
    servers: dict[str, dict[str, Any]] = field(default_factory=dict)
    proofs: dict[str, Proof] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return bool(self.proofs) and all(proof.ok for proof in self.proofs.values())

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        document = {
            "started": self.started,
            "ok": self.ok,
            "accel": self.accel,
            "seconds": self.seconds,
            "servers": self.servers,
            **{name: proof.ok for name, proof in self.proofs.items()},
            "proofs": {name: asdict(proof) for name, proof in self.proofs.items()},
        }
        (folder / "report.json").write_text(json.dumps(document, indent=2) + "\n")
        rows = {name: [timeline.Stage(**stage) for stage in server["stages"]] for name, server in self.servers.items()}
        timeline.draw(folder / "timeline.svg", rows, {name: proof.ok for name, proof in self.proofs.items()})


class MainJob:
    def __init__(self, lab: Lab, shell: OpenStackShell, say: Say) -> None:
        self.lab = lab
        self.tenant = Tenant(lab, shell)
        self.shell = shell
        self.say = say
        self.report = Report(datetime.now(UTC).isoformat(timespec="seconds"), lab.settings.accel)
        self.servers: list[Server] = lab.servers[:2]

    @property
    def guests(self) -> tuple[Guest, Guest]:
        first, second = (self.tenant.guest(server.name) for server in self.servers)
        return first, second

    def run(self) -> None:
        """All of it, in the order in which a person would look at it."""
        self._timed("enrol", lambda: enrol(self.lab, self.shell))
        self.say("Creating a network, a subnet, a security group and ports in Neutron")
        self._timed("tenant network", self.tenant.prepare)
        self.say("Deploying both servers with Ironic: a clone each, one boot, no PXE")
        self._timed("deploy", self.deploy)
        self._timed("network proofs", self.prove_network)
        self._timed("hot plug proofs", self.prove_hotplug)
        self._timed("recovery proofs", self.prove_recovery)
        self._timed("undeploy", self.prove_undeploy)

    def deploy(self) -> None:
        """Both at once; each server's moments become its timeline."""
        ordered: dict[str, float] = {}
        for server in self.servers:
            if self.tenant.state(server.name) != "active":
                ordered[server.name] = time.time()
                self.tenant.deploy(server.name)
            else:
                self.tenant.ensure_power(server.name)
        with ThreadPoolExecutor() as pool:
            logins = dict(pool.map(self._login, self.servers))
        for server in self.servers:
            self.tenant.wait_active(server.name)
            moments = self.tenant.timeline(server.name)
            moments |= logins[server.name] if server.name in ordered else {}
            self._note_stages(server, moments)

    def prove_network(self) -> None:
        first, second = self.guests
        proofs = self.report.proofs
        self.say("Proving the tenant network: answers, TCP and SSH over the tunnel, security groups")
        with proving(proofs, "servers_answer") as proof:
            network_proofs.servers_answer(proof, self.tenant, [first, second])
        with proving(proofs, "tcp_east_west") as proof:
            network_proofs.tcp_east_west(proof, first, second)
        with proving(proofs, "sg_block") as proof:
            network_proofs.sg_block(proof, self.tenant, first, second)
        with proving(proofs, "sg_open") as proof:
            network_proofs.sg_open(proof, self.tenant, first, second)

    def prove_hotplug(self) -> None:
        first, second = self.guests
        self.say("Plugging a second NIC and a data disk into running servers")
        with proving(self.report.proofs, "nic_hotplug") as proof:
            hotplug_proofs.nic_hotplug(proof, self.tenant, first, second)
        with proving(self.report.proofs, "disk_hotplug") as proof:
            hotplug_proofs.disk_hotplug(proof, self.tenant, first, second)

    def prove_recovery(self) -> None:
        victim, peer = self.guests
        server = self.servers[0]
        self.say(f"Killing parts of {server.soc} while a TCP stream and disk writes run")
        with recovery_proofs.Load(self.tenant, victim, peer) as load:
            for name, role in (("agent_kill", "agent"), ("storage_kill", "storage"), ("vswitchd_kill", "ovs-vswitchd")):
                with proving(self.report.proofs, name) as proof:
                    recovery_proofs.kill_program(proof, load, server, role)
                self.say(f"  {role}: {_pauses(proof)}")
            with proving(self.report.proofs, "soc_reboot") as proof:
                recovery_proofs.reboot_soc(proof, load, server)
            self.say(f"  whole SoC: {_pauses(proof)}")

    def prove_undeploy(self) -> None:
        self.say("Undeploying both servers")
        ports = {server.name: self.tenant.create_port(f"{server.name}-port") for server in self.servers}
        with proving(self.report.proofs, "undeploy_clean") as proof:
            for server in self.servers:
                self.tenant.undeploy(server.name)
            undeploy_clean(proof, self.tenant, self.servers, ports)

    def _login(self, server: Server) -> tuple[str, dict[str, float]]:
        guest = self.tenant.guest(server.name)
        guest.wait_ssh(timeout=600)
        moments = {SSH: time.time()}
        guest.run("cloud-init status --wait >/dev/null || test $? = 2", timeout=300)
        moments[CLOUD_INIT] = time.time()
        guest.send_tool()
        self.say(f"  {server.name} is up at {guest.address}")
        return server.name, moments

    def _note_stages(self, server: Server, moments: dict[str, float]) -> None:
        rows = timeline.stages(moments)
        self.report.servers[server.name] = {
            "stages": [asdict(stage) for stage in rows],
            "control_plane_s": timeline.between(moments, ORDER, POWER_ON),
            "order_to_ssh_s": timeline.between(moments, ORDER, SSH),
        }

    def _timed(self, name: str, step: Callable[[], None]) -> None:
        start = time.monotonic()
        try:
            step()
        finally:
            self.report.seconds[name] = round(time.monotonic() - start, 1)


def _pauses(proof: Proof) -> str:
    """What the guests felt of a kill, as they measured it."""
    stream, disk = (proof.measured[f"{what}_pause_s"] for what in ("stream", "disk"))
    return f"nothing lost; longest pause of the stream {stream:.1f} s, of disk writes {disk:.1f} s"
