"""Proofs of recovery: kill a part of a SoC under load; it comes back by itself and nothing is lost.

The load: a numbered TCP stream from the server on the SoC that suffers to the other one, and checksummed records
written with fsync to its system disk.
"""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
        wait_for(lambda: _exists(self.peer, STREAM_SEEN), timeout=30, what="the first records of the stream")
        wait_for(lambda: _exists(self.victim, WRITTEN), timeout=30, what="the first records on the disk")
        return self

    def __exit__(self, *_: object) -> None:
        for guest, verb in ((self.victim, "source"), (self.victim, "write"), (self.peer, "sink")):
            guest.tool_stop(verb)
        self.tenant.shell.run("security", "group", "rule", "delete", self._rule, json=False)

    def seen(self) -> dict[str, Any]:
        """The stream as the peer, whose own SoC is well, has seen it."""
        return self.peer.read_json(STREAM_SEEN)

    def written(self) -> dict[str, Any]:
        return self.victim.read_json(WRITTEN)

    def check(self, proof: Proof, before: "Counts") -> None:
        """Both go on, and nothing is lost: the same TCP connection with every record in its place; no write error, and
        every acknowledged record reads back right from the disk."""
        after = self.counts()
        stream = _further(self.seen, after.streamed, "the stream to go on")
        writer = _further(self.written, after.written, "disk writes to go on")
        disk = self.victim.tool("verify", WRITTEN_FILE, timeout=120)
        proof.measured |= {
            "stream_records": stream["records"],
            "stream_pause_s": _longest(stream["pauses"], before.streamed),
            "disk_records": disk["records"],
            "disk_pause_s": _longest(writer["pauses"], before.written),
        }
        proof.check(
            not stream["ended"] and stream["broken"] == 0, "the TCP stream is unbroken, each record in its place"
        )
        proof.check(writer["errors"] == 0, "the guest saw no I/O error")
        acknowledged = disk["records"] >= writer["records"]
        proof.check(disk["broken"] == 0 and acknowledged, "every acknowledged record reads back right")

    def counts(self) -> "Counts":
        return Counts(int(self.seen()["records"]), int(self.written()["records"]))


@dataclass(frozen=True, slots=True)
class Counts:
    """Records so far."""

    streamed: int
    written: int


def kill_program(proof: Proof, load: Load, server: Server, role: str) -> None:
    """SIGKILL one program of the SoC; another process of it serves again, and the load went through."""
    boot_id, before = load.victim.boot_id(), load.counts()
    pid = server.pid(role)
    proof.check(pid > 0, f"{server.soc}'s {role} runs")
    start = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    wait_for(
        lambda: server.pid(role) not in (0, pid),
        timeout=RECOVERY_S,
        what=f"{server.soc}'s {role} to be started again",
        every=0.02,
    )
    proof.measured["restarted_after_s"] = round(time.monotonic() - start, 2)
    _wait_well(proof, load, server, start)
    load.check(proof, before)
    proof.check(load.victim.boot_id() == boot_id, "the server did not reboot")


def reboot_soc(proof: Proof, load: Load, server: Server) -> None:
    """Kill every process of the SoC at once and start its init: all comes back with no help from the control plane."""
    boot_id, before = load.victim.boot_id(), load.counts()
    start = time.monotonic()
    server.reboot_soc()
    _wait_well(proof, load, server, start)
    load.check(proof, before)
    proof.check(load.victim.boot_id() == boot_id, "the server did not reboot")


def _wait_well(proof: Proof, load: Load, server: Server, start: float) -> None:
    load.tenant.lab.wait_agent(server, timeout=RECOVERY_S)
    with load.tenant.lab.agent(server) as agent:
        agent.wait_ready(
            interfaces=[interface.id for interface in agent.list_interfaces()],
            disks=[disk.id for disk in agent.list_disks()],
            timeout=RECOVERY_S,
        )
    proof.measured["well_after_s"] = round(time.monotonic() - start, 2)


def _longest(pauses: list[tuple[int, float]], since: int) -> float:
    """The longest pause that a record after number `since` ended; 0 when none was longer than 0.25 s."""
    return max((seconds for number, seconds in pauses if number >= since), default=0.0)


def _further(look: Callable[[], dict[str, Any]], count: int, what: str) -> dict[str, Any]:
    """What is seen when there are more records than `count` and those that were in flight then."""

    def further() -> dict[str, Any] | None:
        seen = look()
        return seen if seen["records"] > count + 5 else None

    result: dict[str, Any] = wait_for(further, timeout=RECOVERY_S, what=what)
    return result


def _exists(guest: Guest, path: str) -> bool:
    return guest.run(f"test -e {path} && echo yes || true").strip() == "yes"
