"""Proofs of hot plug: NICs and disks come and go in a running server, without a reboot."""

import json
import time
import uuid

from opendpu.agent.client import AgentClient
from opendpu.lab.scenario.guest import Guest
from opendpu.lab.scenario.proof import Proof
from opendpu.lab.scenario.tenant import Tenant
from opendpu.lab.wait import wait_for

NIC_PORT = "second-nic"
DISK_BYTES = 256 << 20
WRITTEN_BYTES = 16 << 20

# Prints what an SSH server says first, over a TCP connection that leaves through one NIC (SO_BINDTODEVICE, socket(7)).
_GREETING_THROUGH_NIC = b"""
import socket, sys
with socket.socket() as connection:
    connection.settimeout(20)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, sys.argv[1].encode())
    connection.connect((sys.argv[2], 22))
    print(connection.recv(99).decode())
"""


def nic_hotplug(proof: Proof, tenant: Tenant, guest: Guest, peer: Guest) -> None:
    """`baremetal node vif attach` and `detach` on an active node."""
    boot_id, before = guest.boot_id(), set(_pci(guest))
    port = tenant.create_port(NIC_PORT)
    details = tenant.shell.run("port", "show", port)
    mac, address = details["mac_address"], details["fixed_ips"][0]["ip_address"]
    start = time.monotonic()
    tenant.shell.run("baremetal", "node", "vif", "attach", guest.name, port, json=False)
    attached = time.monotonic() - start
    link = wait_for(lambda: _link_of(guest, mac), timeout=30, what=f"a NIC with MAC {mac} in {guest.name}")
    seen = time.monotonic() - start
    new = set(_pci(guest)) - before
    proof.check(len(new) == 1, "one new PCI device is there")
    wait_for(
        lambda: address in guest.run(f"ip -4 addr show dev {link}"), timeout=30, what=f"{address} on {link} by DHCP"
    )
    # Unbound, the kernel would take whichever NIC routes best.
    out = guest.run(f"python3 - {link} {peer.address}", stdin=_GREETING_THROUGH_NIC)
    proof.check("SSH-2.0" in out, f"TCP from {guest.name} through the new NIC to {peer.name}")
    start = time.monotonic()
    tenant.shell.run("baremetal", "node", "vif", "detach", guest.name, port, json=False)
    wait_for(lambda: not _link_of(guest, mac), timeout=30, what=f"the NIC with MAC {mac} to leave {guest.name}")
    detached = time.monotonic() - start
    proof.check(set(_pci(guest)) == before, "the PCI device is gone after the detach")
    proof.check(guest.boot_id() == boot_id, "no reboot in between")
    tenant.shell.run("port", "delete", port, json=False)
    proof.measured |= {
        "attach_call_s": round(attached, 2),
        "seen_in_guest_s": round(seen, 2),
        "detach_s": round(detached, 2),
        "pci_device": new.pop(),
        "link": link,
    }


def disk_hotplug(proof: Proof, tenant: Tenant, first: Guest, second: Guest) -> None:
    """A data volume: plugged into one running server, written, unplugged, plugged into the other, read back."""
    lab = tenant.lab
    volume = f"data-{uuid.uuid4().hex[:8]}"
    boots = {guest.name: guest.boot_id() for guest in (first, second)}
    one, two = (lab.agent(lab.server(guest.name)) for guest in (first, second))
    with one, two:
        one.create_volume(volume, size_bytes=DISK_BYTES)
        start = time.monotonic()
        device = _plug(one, first, volume)
        proof.measured["seen_in_guest_s"] = round(time.monotonic() - start, 2)
        written = first.run(
            f"dd if=/dev/urandom of={device} bs=1M count={WRITTEN_BYTES >> 20} oflag=direct conv=fsync status=none &&"
            f" head -c {WRITTEN_BYTES} {device} | sha256sum",
            timeout=120,
        ).split()[0]
        start = time.monotonic()
        _unplug(one, first, volume)
        proof.measured["unplugged_s"] = round(time.monotonic() - start, 2)
        device = _plug(two, second, volume)
        read = second.run(f"head -c {WRITTEN_BYTES} {device} | sha256sum", timeout=120).split()[0]
        proof.check(written == read, f"{WRITTEN_BYTES} bytes written in {first.name} are read in {second.name}")
        _unplug(two, second, volume)
        two.delete_volume(volume)
    proof.check(all(guest.boot_id() == boots[guest.name] for guest in (first, second)), "no reboot in between")
    proof.measured["sha256"] = read


def _plug(agent: AgentClient, guest: Guest, volume: str) -> str:
    agent.create_disk(volume, volume_id=volume, serial=volume)
    agent.wait_ready(disks=[volume], timeout=30)
    return str(wait_for(lambda: _device_of(guest, volume), timeout=30, what=f"disk {volume} in {guest.name}"))


def _unplug(agent: AgentClient, guest: Guest, volume: str) -> None:
    agent.delete_disk(volume)
    agent.wait_deleted(disks=[volume], timeout=30)
    wait_for(lambda: not _device_of(guest, volume), timeout=30, what=f"disk {volume} to leave {guest.name}")


def _pci(guest: Guest) -> list[str]:
    return guest.run("ls /sys/bus/pci/devices").split()


def _link_of(guest: Guest, mac: str) -> str:
    links = json.loads(guest.run("ip -j link"))
    return next((str(link["ifname"]) for link in links if link.get("address") == mac), "")


def _device_of(guest: Guest, serial: str) -> str:
    """The block device whose NVMe serial number this is."""
    devices = json.loads(guest.run("lsblk --json --nodeps -o PATH,SERIAL"))["blockdevices"]
    return next((str(device["path"]) for device in devices if (device["serial"] or "").strip() == serial), "")
