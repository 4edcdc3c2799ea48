"""Hostile and wrong input: configuration, ids, specifications, roles."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opendpu.agent import config, tls, validate
from opendpu.agent.disks import default_serial
from opendpu.agent.v1 import agent_pb2 as pb
from opendpu.errors import AccessDeniedError, InvalidArgumentError, OpenDPUError

GOOD = """
[agent]
state_dir = "/var/lib/opendpu"
listen = "10.98.0.1:7443"
metrics = "127.0.0.1:9180"
[tls]
ca = "ca.pem"
certificate = "c.pem"
key = "c.key"
[card]
driver = "emulated"
bus = "/run/card.qmp"
[storage]
daemon = "/run/qmp"
nbd = "/run/nbd"
pool = "/var/pool"
[network]
ovsdb = "unix:/run/db.sock"
[underlay]
bridge = "br-ul"
address = "172.31.0.1/24"
mtu = 1600
"""
PORT = "11111111-1111-4111-8111-111111111111"


def test_a_good_configuration():
    result = config.parse(GOOD)
    assert result.listen == "10.98.0.1:7443"
    assert result.metrics == ("127.0.0.1", 9180)
    assert result.network.bridge == "br-int"
    assert result.underlay is not None
    assert result.underlay.mtu == 1600
    assert result.card["bus"] == "/run/card.qmp"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("127.0.0.1:9180", "0.0.0.0:9180", "loopback"),
        ("10.98.0.1:7443", "10.98.0.1", "listen"),
        ("10.98.0.1:7443", "10.98.0.1:70000", "listen"),
        ("mtu = 1600", "mtu = true", "mtu"),
        ("172.31.0.1/24", "nowhere", "address"),
        ("[storage]", "[storage]\ncolour = 1", "colour"),
        ("[network]", "[netwrk]", "netwrk"),
        ("[agent]", "[agent]\ndisk_deadline_s = -1", "disk_deadline_s"),
        ("[agent]", "[agent", "TOML"),
    ],
)
def test_a_wrong_configuration_says_where(old, new, says):
    with pytest.raises(InvalidArgumentError, match=says):
        config.parse(GOOD.replace(old, new), "agent.toml")


def test_a_configuration_others_can_read_is_refused(tmp_path):
    path = tmp_path / "agent.toml"
    path.write_text(GOOD)
    path.chmod(0o640)
    with pytest.raises(InvalidArgumentError, match="chmod 600"):
        config.load(path)
    path.chmod(0o600)
    assert config.load(path).card_driver == "emulated"


@given(st.text())
def test_any_text_is_a_configuration_or_a_clear_refusal(text):
    with pytest.raises(InvalidArgumentError):
        config.parse(text)


@given(st.text(max_size=60))
def test_ids(text):
    good = 1 <= len(text) <= 48 and set(text) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    if good:
        assert validate.resource_id(text) == text
    else:
        with pytest.raises(InvalidArgumentError):
            validate.resource_id(text)


@given(mac=st.text(max_size=20) | st.binary(min_size=6, max_size=6).map(lambda b: b.hex(":").upper()))
def test_a_mac_that_is_taken_is_unicast_and_lower_case(mac):
    try:
        result = validate.interface(pb.InterfaceSpec(mac=mac, port_id=PORT), 9000).mac
    except InvalidArgumentError:
        return
    assert result == mac.lower()
    assert bytes.fromhex(result.replace(":", ""))[0] & 1 == 0


@pytest.mark.parametrize(
    "spec",
    [
        pb.InterfaceSpec(mac="52:54:00:00:00:01", port_id="nope"),
        pb.InterfaceSpec(mac="52:54:00:00:00:01", port_id=PORT, mtu=67),
        pb.InterfaceSpec(mac="52:54:00:00:00:01", port_id=PORT, mtu=9001),
        pb.InterfaceSpec(mac="52:54:00:00:00:01", port_id=PORT, kind=9),
        pb.InterfaceSpec(mac="01:00:5e:00:00:01", port_id=PORT),
        pb.InterfaceSpec(mac="52:54:00:00:00:01\n", port_id=PORT),
    ],
)
def test_wrong_interfaces(spec):
    with pytest.raises(InvalidArgumentError):
        validate.interface(spec, 9000)


@pytest.mark.parametrize(
    "spec",
    [
        pb.DiskSpec(),
        pb.DiskSpec(volume_id="../x"),
        pb.DiskSpec(volume_id="v", serial="x" * 21),
        pb.DiskSpec(volume_id="v", serial="grün"),
        pb.DiskSpec(volume_id="v", serial="a,b\n"),
        pb.DiskSpec(config_drive=b"short"),
        pb.DiskSpec(config_drive=bytes(validate.CONFIG_DRIVE_MAX + 1)),
    ],
)
def test_wrong_disks(spec):
    with pytest.raises(InvalidArgumentError):
        validate.disk("d", spec, "serial")


@given(st.text("abcdef0123456789-", min_size=1, max_size=48))
def test_default_serials_fit_and_differ(id):
    assert 1 <= len(default_serial(id)) <= 20
    assert default_serial(id + "x") != default_serial(id)


@pytest.mark.parametrize(
    ("role", "method", "allowed"),
    [
        ("conductor", "Volumes/DeleteVolume", True),
        ("compute", "Disks/CreateDisk", True),
        ("compute", "Servers/GetServer", True),
        ("mesh", "Interfaces/CreateInterface", True),
        ("mesh", "Disks/ListDisks", False),
        ("mesh", "Volumes/CreateVolume", False),
        ("observer", "Interfaces/WatchInterfaces", True),
        ("observer", "Disks/ListDisks", True),
        ("observer", "Disks/CreateDisk", False),
        ("observer", "Interfaces/DeleteInterface", False),
        ("root", "Interfaces/GetInterface", False),
    ],
)
def test_roles(role, method, allowed):
    call = f"/opendpu.agent.v1.{method}"
    if allowed:
        tls.authorize(call, {role})
    else:
        with pytest.raises(AccessDeniedError):
            tls.authorize(call, {role})


def test_every_method_of_the_api_has_a_rule():
    for service in pb.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            tls.authorize(f"/{service.full_name}/{method.name}", {"conductor"})
            with pytest.raises(OpenDPUError):
                tls.authorize(f"/{service.full_name}/{method.name}", set())


def test_only_uri_names_are_roles():
    assert tls.roles_of({"peer_uri": [b"urn:opendpu:role:mesh", b"urn:x"]}) == {"mesh"}
    assert tls.roles_of({"peer_dns": [b"urn:opendpu:role:mesh"], "x509_common_name": [b"conductor"]}) == set()
