"""What a host may send and receive: port security and security groups, with real traffic."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

import pytest
from datacentre import DataCentre, Host, transfer

from opendpu.lab.supervisor import in_netns

MakeHost = Callable[..., Host]
Plug = Callable[[Host], Awaitable[float]]

_FRAME = """
import socket, sys
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
raw.bind(("eth0", 0))
for _ in range(5):
    raw.send(bytes.fromhex(sys.argv[1]))
"""

_LISTEN = """
import select, socket, sys
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))  # ETH_P_ALL
raw.bind(("eth0", 3))
print("listening", flush=True)
found = 0
while True:
    ready, _, _ = select.select([raw, sys.stdin], [], [])
    if raw in ready:
        frame, (_, _, kind, *_) = raw.recvfrom(2048)
        found += kind != 4 and sys.argv[1] in frame.hex()  # PACKET_OUTGOING: the answer's copy of what came
    else:
        break
print(found)
"""


def arrived(source: Host, to: Host, frame: str, mark: str) -> int:
    """How many of five equal frames sent by one host were seen by the other within half a second."""
    command = in_netns(to.netns, [sys.executable, "-c", _LISTEN, mark])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as listener:
        try:
            assert listener.stdout is not None
            assert listener.stdout.readline() == "listening\n"
            subprocess.run(in_netns(source.netns, [sys.executable, "-c", _FRAME, frame]), check=True)
            time.sleep(0.5)
            return int(listener.communicate(timeout=20)[0])
        finally:
            listener.kill()


def plain(mac: str) -> str:
    return mac.replace(":", "")


def udp(source_mac: str, to_mac: str, source_ip: str, to_ip: str, payload: str) -> str:
    """An Ethernet frame with a UDP datagram (no UDP checksum, which IPv4 allows)."""
    body = bytes.fromhex(payload)
    header = bytearray.fromhex("4500") + (28 + len(body)).to_bytes(2, "big")
    header += bytes.fromhex("0001000040110000")
    header += bytes(map(int, source_ip.split("."))) + bytes(map(int, to_ip.split(".")))
    total = sum(int.from_bytes(header[i : i + 2], "big") for i in range(0, 20, 2))
    total = (total & 0xFFFF) + (total >> 16)
    header[10:12] = (~total & 0xFFFF).to_bytes(2, "big")
    datagram = bytes.fromhex("30393039") + (8 + len(body)).to_bytes(2, "big") + b"\0\0" + body
    return plain(to_mac) + plain(source_mac) + "0800" + bytes(header).hex() + datagram.hex()


def arp(source: Host, to: Host, claimed_ip: str) -> str:
    """An unasked ARP reply (RFC 826): how a neighbour's cache is poisoned. Requests OVN answers by itself."""
    ips = ["".join(f"{int(part):02x}" for part in address.split(".")) for address in (claimed_ip, to.address)]
    body = "0001080006040002" + plain(source.mac) + ips[0] + plain(to.mac) + ips[1]
    return (plain(to.mac) + plain(source.mac) + "0806" + body).ljust(120, "0")


MARK = "6f70656e6470752d"
FOREIGN = "02:00:00:00:66:66"


async def test_spoofed_frames_are_dropped(dc: DataCentre, make_host: MakeHost, plug: Plug) -> None:
    one, two = make_host("soc1", 31), make_host("soc2", 32)
    await plug(one)
    await plug(two)
    dc.nbctl("--wait=hv", "sync")
    await asyncio.to_thread(transfer, one, two)

    # The honest frames arrive, so the method can see what it looks for.
    assert arrived(one, two, udp(one.mac, two.mac, one.address, two.address, MARK), MARK) == 5
    honest = arp(one, two, one.address)
    assert arrived(one, two, honest, honest[28:64]) == 5

    spoofed_mac = udp(FOREIGN, two.mac, one.address, two.address, MARK)
    assert arrived(one, two, spoofed_mac, MARK) == 0
    spoofed_ip = udp(one.mac, two.mac, "10.0.0.77", two.address, MARK)
    assert arrived(one, two, spoofed_ip, MARK) == 0
    poisoned = arp(one, two, "10.0.0.1")
    assert arrived(one, two, poisoned, poisoned[28:64]) == 0
    tagged = plain(two.mac) + plain(one.mac) + "81000064" + udp(one.mac, two.mac, one.address, two.address, MARK)[24:]
    assert arrived(one, two, tagged, MARK) == 0


async def test_without_port_security(dc: DataCentre, make_host: MakeHost, plug: Plug) -> None:
    """port_security_enabled=False means what it says: we do not overrule Neutron."""
    one, two = make_host("soc1", 33, port_security=False), make_host("soc2", 34)
    await plug(one)
    await plug(two)
    dc.nbctl("--wait=hv", "sync")
    await asyncio.to_thread(transfer, one, two)
    assert arrived(one, two, udp(FOREIGN, two.mac, "10.0.0.77", two.address, MARK), MARK) == 5


async def test_nothing_passes_before_ovn_says_so(dc: DataCentre, make_host: MakeHost, plug: Plug) -> None:
    """A port that OVN does not know, and one of a known network, on one switch."""
    stranger, two = make_host("soc2", 35), make_host("soc2", 36)
    dc.nbctl("lsp-del", stranger.port_id)
    await plug(two)
    dc.vsctl("soc2", "add-port", "br-int", stranger.representor)
    assert arrived(stranger, two, udp(stranger.mac, two.mac, stranger.address, two.address, MARK), MARK) == 0
    assert not two.ping(stranger.address)


async def test_security_group(dc: DataCentre, make_host: MakeHost, plug: Plug) -> None:
    """As Neutron writes one: a port group, all dropped but what is allowed, and answers of what was allowed."""
    one, two = make_host("soc1", 37), make_host("soc2", 38)
    await plug(one)
    await plug(two)
    group = "sg1"
    dc.nbctl("pg-add", group, two.port_id)
    try:
        dc.nbctl("acl-add", group, "to-lport", "1001", f"outport == @{group} && ip", "drop")
        rule = f"outport == @{group} && ip4 && tcp && tcp.dst == 5001"
        dc.nbctl("--wait=hv", "acl-add", group, "to-lport", "1002", rule, "allow-related")
        await asyncio.to_thread(transfer, one, two, port=5001)
        with pytest.raises(ConnectionError):
            await asyncio.to_thread(transfer, one, two, port=5002, connect_s=2)
        assert not one.ping(two.address)
        # Out of the group's member all may go, and the answers come back.
        dc.nbctl("acl-add", group, "from-lport", "1002", f"inport == @{group} && ip4", "allow-related")
        dc.nbctl("--wait=hv", "sync")
        await asyncio.to_thread(transfer, two, one, port=5003)
        # A new rule opens a port within a second.
        dc.nbctl("--wait=hv", "acl-add", group, "to-lport", "1002", rule.replace("5001", "5002"), "allow-related")
        assert await asyncio.to_thread(transfer, one, two, port=5002, connect_s=1) < 10
    finally:
        dc.nbctl("--wait=hv", "pg-del", group)


async def test_jumbo_frames_cross_the_tunnel(dc: DataCentre, make_host: MakeHost, plug: Plug) -> None:
    one, two = make_host("soc1", 39), make_host("soc2", 40)
    await plug(one)
    await plug(two)
    dc.nbctl("--wait=hv", "sync")
    assert one.ping(two.address)
    whole = ["ping", "-c3", "-i0.2", "-W1", "-M", "do", "-s", str(8900 - 28), two.address]
    dc.run(one.netns, *whole)
    await asyncio.to_thread(transfer, one, two)
