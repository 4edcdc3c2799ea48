"""What the lab runs for a chassis and for OVN's control plane."""

from dataclasses import replace
from pathlib import Path

import pytest

from opendpu.errors import InvalidArgumentError
from opendpu.lab.chassis import Chassis, TlsFiles
from opendpu.lab.ovn_central import OvnCentral

TLS = TlsFiles(Path("/pki/ca.pem"), Path("/pki/soc.pem"), Path("/pki/soc.key"))
CHASSIS = Chassis(
    "soc1", "ns-soc1", Path("/run/x/soc1"), Path("/var/x/soc1"), "10.99.0.1/24", "ssl:10.98.0.254:6642", TLS
)


def test_chassis_programs() -> None:
    programs = {program.name: program for program in CHASSIS.programs()}
    assert list(programs) == ["soc1-ovsdb-server", "soc1-ovs-vswitchd", "soc1-ovn-controller"]
    assert {program.netns for program in programs.values()} == {"ns-soc1"}
    assert "--private-key=/pki/soc.key" in programs["soc1-ovn-controller"].command
    # The supervisor's configuration is made of lines.
    assert not any("\n" in word for program in programs.values() for word in program.command)
    assert not any("--detach" in program.command for program in programs.values())


def test_gateway_keeps_its_own_tunnel_address() -> None:
    keeper = replace(CHASSIS, keep_underlay=True).programs()[-1]
    assert keeper.command[1:3] == ("-m", "opendpu.network.underlay")
    assert keeper.command[-4:] == ("--address", "10.99.0.1/24", "--mtu", "9000")


def test_tls_needs_a_certificate() -> None:
    with pytest.raises(InvalidArgumentError, match="certificate"):
        replace(CHASSIS, pki=None).prepare()


def test_chassis_reach_the_southbound_database_by_tls_only() -> None:
    central = OvnCentral("ns", Path("/run/x/c"), Path("/var/x/c"), "10.98.0.254", TLS)
    assert central.sb_remote == "ssl:10.98.0.254:6642"
    remotes = [word for program in central.programs() for word in program.command if word.startswith("--remote=")]
    assert sorted(remotes) == [
        "--remote=db:OVN_Southbound,SB_Global,connections",
        "--remote=ptcp:6641:127.0.0.1",
        "--remote=ptcp:6642:127.0.0.1",
        "--remote=punix:/run/x/c/nb.sock",
        "--remote=punix:/run/x/c/sb.sock",
    ]
