"""Proofs of recovery: kill a part of a SoC under load; it comes back by itself and nothing is lost.

The load: a numbered TCP stream from the server on the SoC that suffers to the other one, and checksummed records
written with fsync to its system disk.
"""

import json
import os
import signal
import time

from opendpu.lab.scenario.guest import Guest
from opendpu.lab.scenario.proof import Proof
from opendpu.lab.scenario.tenant import Tenant
from opendpu.lab.server import Server
from opendpu.lab.wait import wait_for

STREAM_PORT = 9000
STREAM_SENT, STREAM_SEEN = "/run/opendpu-sent.json", "/run/opendpu-seen.json"
WRITTEN_FILE, WRITTEN = "/var/tmp/opendpu-records", "/run/opendpu-written.json"  # noqa: S108  # in the guest
RECOVERY_S = 60


class Load:
    """The stream and the writer; `with Load(...)` starts them, leaving it ends them."""

    def __init__(self, tenant: Tenant, victim: Guest, peer: Guest) -> None:
        self.tenant, self.victim, self.peer = tenant, victim, peer
        self._rule = ""

    def __enter__(self) -> "Load":
        self._rule = self.tenant.add_rule("--protocol", "tcp", "--dst-port", str(STREAM_PORT))
        self.peer.tool_detached("sink", STREAM_PORT, STREAM_SEEN)
        self.victim.tool_detached("source", self.peer.address, STREAM_PORT, STREAM_SENT)
        self.victim.tool_detached("write", WRITTEN_FILE, WRITTEN)
        wait_for(lambda: self.streamed() > 0, timeout=30, what="the first records of the stream")
        wait_for(lambda: self.written() > 0, timeout=30, what="the first records on the disk")
        return self

    def __exit__(self, *_: object) -> None:
        for guest, verb in ((self.victim, "source"), (self.victim, "write"), (self.peer, "sink")):
            guest.tool_stop(verb)
        self.tenant.shell.run("security", "group", "rule", "delete", self._rule, json=False)

    def streamed(self) -> int:
        """Records that arrived at the peer, whose own SoC is well."""
        text = self.peer.run(f"cat {STREAM_SEEN} 2>/dev/null || echo '{{}}'")
        return _field(text, "records")

    def written(self) -> int:
        text = self.victim.run(f"cat {WRITTEN} 2>/dev/null || echo '{{}}'")
        return _field(text, "records")

    def check(self, proof: Proof, start: float) -> None:
        """Both go on: new records arrive and are written after `start` (what was sent before may be in flight)."""
        seen = self.streamed()
        wait_for(lambda: self.streamed() > seen + 5, timeout=RECOVERY_S, what="the TCP stream to go on")
        proof.measured["stream_on_after_s"] = round(time.monotonic() - start, 2)
        count = self.written()
        wait_for(lambda: self.written() > count, timeout=RECOVERY_S, what="disk writes to go on")
        proof.measured["writes_on_after_s"] = round(time.monotonic() - start, 2)
        self.check_whole(proof)

    def check_whole(self, proof: Proof) -> None:
        """Nothing lost so far: the same TCP connection, every record in order; no write error, all records there."""
        stream = self.peer.read_json(STREAM_SEEN)
        writer = self.victim.read_json(WRITTEN)
        acknowledged = int(writer["records"])
        disk = self.victim.tool("verify", WRITTEN_FILE, timeout=120)
        proof.measured |= {"stream": stream, "writer": writer, "read_back": disk}
        proof.check(
            not stream["ended"] and stream["broken"] == 0, "the TCP stream is unbroken, each record in its place"
        )
        proof.check(writer["errors"] == 0, "the guest saw no I/O error")
        proof.check(
            disk["broken"] == 0 and disk["records"] >= acknowledged, "every acknowledged record reads back right"
        )


def kill_program(proof: Proof, load: Load, server: Server, role: str) -> None:
    """SIGKILL one program of the SoC; another process of it serves again, and the load went through."""
    boot_id = load.victim.boot_id()
    pid = server.pid(role)
    proof.check(pid > 0, f"{server.soc}'s {role} runs")
    start = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    wait_for(
        lambda: server.pid(role) not in (0, pid), timeout=RECOVERY_S, what=f"{server.soc}'s {role} to be started again"
    )
    proof.measured["restarted_after_s"] = round(time.monotonic() - start, 2)
    _wait_well(proof, load, server, start)
    proof.check(load.victim.boot_id() == boot_id, "the server did not reboot")


def reboot_soc(proof: Proof, load: Load, server: Server) -> None:
    """Kill every process of the SoC at once and start its init: all comes back with no help from the control plane."""
    boot_id = load.victim.boot_id()
    start = time.monotonic()
    server.reboot_soc()
    _wait_well(proof, load, server, start)
    proof.check(load.victim.boot_id() == boot_id, "the server did not reboot")


def _wait_well(proof: Proof, load: Load, server: Server, start: float) -> None:
    load.tenant.lab.wait_agent(server, timeout=RECOVERY_S)
    with load.tenant.lab.agent(server) as agent:
        agent.wait_ready(
            interfaces=[interface.id for interface in agent.list_interfaces()],
            disks=[disk.id for disk in agent.list_disks()],
            timeout=RECOVERY_S,
        )
    proof.measured["agent_well_after_s"] = round(time.monotonic() - start, 2)
    load.check(proof, start)


def _field(text: str, name: str) -> int:
    return int(json.loads(text).get(name, 0))
