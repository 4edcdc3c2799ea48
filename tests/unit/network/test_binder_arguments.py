"""What the binder refuses before it touches the switch."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opendpu.errors import InvalidArgumentError, UnavailableError
from opendpu.network.binder import PortBinder
from opendpu.network.underlay import Underlay


def binder() -> PortBinder:
    return PortBinder(ovsdb="unix:/nonexistent/db.sock")


@pytest.mark.parametrize("address", ["", "tcp:127.0.0.1:6640", "unix:db.sock", "/run/db.sock"])
def test_database_address(address: str) -> None:
    with pytest.raises(InvalidArgumentError, match="absolute path"):
        PortBinder(ovsdb=address)


@pytest.mark.parametrize(
    ("representor", "port_id", "mac", "mtu", "word"),
    [
        ("", "p", "02:00:00:00:00:01", 1500, "netdev"),
        ("a-name-too-long-", "p", "02:00:00:00:00:01", 1500, "netdev"),
        ("pf0 vf0", "p", "02:00:00:00:00:01", 1500, "netdev"),
        ("../pf0vf0", "p", "02:00:00:00:00:01", 1500, "netdev"),
        ("pf0vf0", "", "02:00:00:00:00:01", 1500, "port id"),
        ("pf0vf0", "p\n", "02:00:00:00:00:01", 1500, "port id"),
        ("pf0vf0", "p", "03:00:00:00:00:01", 1500, "MAC"),
        ("pf0vf0", "p", "02:00:00:00:00:0A", 1500, "MAC"),
        ("pf0vf0", "p", "02:00:00:00:00", 1500, "MAC"),
        ("pf0vf0", "p", "02:00:00:00:00:01\n", 1500, "MAC"),
        ("pf0vf0", "p", "02:00:00:00:00:01", 67, "MTU"),
        ("pf0vf0", "p", "02:00:00:00:00:01", 65536, "MTU"),
    ],
)
async def test_bad_argument(representor: str, port_id: str, mac: str, mtu: int, word: str) -> None:
    with pytest.raises(InvalidArgumentError, match=word):
        await binder().plug(representor, port_id=port_id, mac=mac, mtu=mtu)


async def test_good_arguments_need_a_database() -> None:
    with pytest.raises(UnavailableError, match="ovsdb-server"):
        await binder().plug("pf0vf0", port_id="p", mac="02:00:00:00:00:01", mtu=1500)


@given(st.text(max_size=40))
async def test_only_unicast_macs_in_lower_case(mac: str) -> None:
    good = re.fullmatch(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}", mac) and int(mac[:2], 16) % 2 == 0
    with pytest.raises(UnavailableError if good else InvalidArgumentError):
        await binder().plug("pf0vf0", port_id="p", mac=mac, mtu=1500)


@given(st.from_regex(r"\A(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\Z"))
async def test_multicast_macs_are_refused(mac: str) -> None:
    multicast = int(mac[:2], 16) % 2
    with pytest.raises(InvalidArgumentError if multicast else UnavailableError):
        await binder().plug("pf0vf0", port_id="p", mac=mac, mtu=1500)


@pytest.mark.parametrize("address", ["", "10.99.0.1", "10.99.0.300/24", "here/24", "10.99.0.1/33"])
def test_underlay_address(address: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"10\.99\.0\.1/24"):
        Underlay(bridge="br-ul", address=address, mtu=9000)
