"""The example configuration and the systemd units say what the programs take."""

import configparser
import shlex
from pathlib import Path

import pytest

from opendpu.agent import config
from opendpu.card.card import CardLimits
from opendpu.card.factory import make_card
from opendpu.storage.program import daemon_command

ROOT = Path(__file__).parents[3]
UNITS = ROOT / "deploy" / "systemd"


def unit(name: str) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser()
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((UNITS / name).read_text().replace("\\\n", " "))
    return parser


def command(name: str) -> list[str]:
    return shlex.split(unit(name)["Service"]["ExecStart"])


def test_example_configuration_is_one() -> None:
    example = config.parse((ROOT / "examples" / "agent.toml").read_text())
    card = make_card(example.card_driver, example.card)
    assert example.underlay is not None
    assert CardLimits(**example.card["limits"]) == CardLimits()
    assert card is not None


def test_configuration_and_units_name_the_same_sockets() -> None:
    example = config.parse((ROOT / "examples" / "agent.toml").read_text())
    # daemon_command's first words are a shell that sets the umask, which the unit does itself.
    wanted = daemon_command(example.storage.daemon, example.storage.nbd)[4:]
    assert wanted[0] == "qemu-storage-daemon"
    assert command("opendpu-storage.service") == ["/usr/bin/qemu-storage-daemon", *wanted[1:]]
    assert unit("opendpu-storage.service")["Service"]["UMask"] == "0077"
    state = "/var/lib/" + unit("opendpu-agent.service")["Service"]["StateDirectory"]
    assert str(example.state_dir).startswith(state)
    assert str(example.storage.pool).startswith(state)


def test_agent_unit_runs_a_command_the_agent_takes() -> None:
    program, *options = command("opendpu-agent.service")
    assert program.endswith("/bin/opendpu-agent")
    assert options == ["--config", "/etc/opendpu/agent.toml"]


@pytest.mark.parametrize("name", ["opendpu-agent.service", "opendpu-storage.service"])
def test_units_are_hardened_and_restart(name: str) -> None:
    service = unit(name)["Service"]
    assert service["Restart"] == "always"
    assert service["ProtectSystem"] == "strict"
    assert service["NoNewPrivileges"] == "yes"
    assert "CapabilityBoundingSet" in service


def test_ovn_controller_follows_ovs_vswitchd() -> None:
    section = unit("ovn-controller.service.d/opendpu.conf")["Unit"]
    assert section["PartOf"] == section["After"] == "ovs-vswitchd.service"
