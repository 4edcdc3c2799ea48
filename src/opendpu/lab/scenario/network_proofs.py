"""Proofs of the tenant network: what must pass passes, what must not does not, and changes take hold at once."""

import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor

from opendpu.lab.scenario.guest import Guest
from opendpu.lab.scenario.proof import Proof
from opendpu.lab.scenario.tenant import PROOF_FILE, Tenant

CLOSED_PORT = 8080
SSH_PORT = 22
SSH_BYTES = 1 << 20
PAYLOAD_BYTES = 8 << 20


def servers_answer(proof: Proof, tenant: Tenant, guests: list[Guest]) -> None:
    """cloud-init did its work from the config drive: host name, key (we are in by it), user-data's proof file."""
    for guest in guests:
        proof.check(tenant.workstation.pings(guest.address), f"{guest.name} answers ping at {guest.address}")
        proof.check(guest.run("hostname").strip() == guest.name, f"{guest.name} has its host name")
        text = guest.run(f"cat {PROOF_FILE}").strip()
        proof.check(guest.name in text, f"user-data of {guest.name} ran and left its proof")
        proof.measured[guest.name] = {"address": guest.address, "proof": text}


def tcp_east_west(proof: Proof, first: Guest, second: Guest) -> None:
    """SSH from each server to the other and bulk bytes with a checksum through it, both ways.

    The group lets only port 22 and ICMP in, so the bulk goes the way that is open: inside SSH from server to server,
    whose TCP connection runs between the tenant addresses, over the tunnel. Plain TCP is in `sg_open`.
    """
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda pair: _one_way(proof, *pair), ((first, second), (second, first))))


def _one_way(proof: Proof, source: Guest, target: Guest) -> None:
    ping = source.run(f"ping -c1 -W3 {target.address} >/dev/null && echo yes").strip()
    proof.check(ping == "yes", f"ping from {source.name} to {target.name}")
    payload = os.urandom(SSH_BYTES)
    start = time.monotonic()
    who, received, *_ = target.run("hostname && sha256sum", stdin=payload, via=source, timeout=120).split()
    took = {"bytes": SSH_BYTES, "sha256": received, "seconds": round(time.monotonic() - start, 1)}
    proof.check(who == target.name, f"SSH from {source.name} to {target.name} at {target.address}")
    sent = hashlib.sha256(payload).hexdigest()
    proof.check(sent == received, f"{SSH_BYTES} bytes from {source.name} to {target.name}, same SHA-256")
    proof.measured[f"{source.name}->{target.name}"] = took


def sg_block(proof: Proof, tenant: Tenant, first: Guest, second: Guest) -> None:
    """A port that the group does not name is closed from everywhere but the server itself; the open ones are open."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda pair: _blocked(proof, tenant, *pair), ((first, second), (second, first))))


def _blocked(proof: Proof, tenant: Tenant, source: Guest, target: Guest) -> None:
    listener = target.tool_start("receive", CLOSED_PORT)
    try:
        blocked = not source.tool("probe", target.address, CLOSED_PORT, 1.5)["open"]
        proof.check(blocked, f"port {CLOSED_PORT} of {target.name} is blocked from {source.name}")
        blocked = not tenant.workstation.reaches(target.address, CLOSED_PORT, timeout=1)
        proof.check(blocked, f"port {CLOSED_PORT} of {target.name} is blocked from the workstation")
        opened = source.tool("probe", target.address, SSH_PORT, 5)["open"]
        proof.check(opened, f"port {SSH_PORT} of {target.name} is open from {source.name}")
        # Without this a listener that never listened would pass for a blocked port.
        local = target.tool("probe", "127.0.0.1", CLOSED_PORT, 5)["open"]
        proof.check(local, f"{target.name} itself reaches its listener on port {CLOSED_PORT}")
    finally:
        target.tool_stop("receive")
        listener.stop()


def sg_open(proof: Proof, tenant: Tenant, first: Guest, second: Guest) -> None:
    """Adding a rule opens the port within a second, during a connection attempt; bytes pass; deleting closes it."""
    listener = second.tool_start("receive", CLOSED_PORT)
    attempt = first.tool_start("probe", second.address, CLOSED_PORT, 60)
    time.sleep(1)  # the attempt has been dropped by now
    start = time.monotonic()
    rule = tenant.add_rule("--protocol", "tcp", "--dst-port", str(CLOSED_PORT))
    try:
        created = time.monotonic()
        opened = attempt.line()["open"]
        seconds = max(time.monotonic() - created, 0.0)
        proof.check(opened, f"port {CLOSED_PORT} of {second.name} opens to {first.name} when the rule is added")
        proof.measured |= {"api_s": round(created - start, 3), "open_after_s": round(seconds, 3)}
        proof.check(seconds <= 1.0, "it is open within 1 s of the API's answer")
        listener.result()  # it took the attempt's connection
        listener = second.tool_start("receive", CLOSED_PORT)
        sent = first.tool("send", second.address, CLOSED_PORT, PAYLOAD_BYTES, timeout=120)
        received = listener.result()
        proof.check(sent == received, f"{PAYLOAD_BYTES} bytes of plain TCP arrive with the same SHA-256")
        proof.measured["transfer"] = received
    finally:
        attempt.stop()
        second.tool_stop("receive")
        listener.stop()
        tenant.shell.run("security", "group", "rule", "delete", rule, json=False)
    listener = second.tool_start("receive", CLOSED_PORT)
    try:
        closed = not first.tool("probe", second.address, CLOSED_PORT, 2)["open"]
        proof.check(closed, "it is closed again when the rule is deleted")
    finally:
        second.tool_stop("receive")
        listener.stop()
