"""The control plane's configuration files, parsed as the services parse them."""

import configparser
import stat
import string
from importlib import metadata, resources
from pathlib import Path

import pytest
import yaml

from opendpu.errors import DeadlineError
from opendpu.lab.central import Central
from opendpu.lab.central.database import Database
from opendpu.lab.central.rendering import render
from opendpu.lab.central.services import Services, enabled_interfaces
from opendpu.lab.files import write_private


@pytest.fixture
def services(tmp_path: Path) -> Services:
    made = Services(
        state=tmp_path / "state", run=tmp_path / "run", netns="mgmt", oob_address="10.98.0.254",
        ovn_nb="tcp:127.0.0.1:6641", ovn_sb="tcp:127.0.0.1:6642", underlay_mtu=9000,
    )  # fmt: skip
    made.prepare(tmp_path / "mariadb.sock")
    return made


def parsed(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=False, default_section="none")
    parser.read_string(path.read_text())
    return parser


def test_every_file_is_whole_and_private(services: Services, tmp_path: Path) -> None:
    conf = tmp_path / "state/conf"
    names = {entry.name for entry in conf.iterdir()}
    assert names == {"neutron.conf", "neutron-policy.yaml", "neutron-uwsgi.ini", "ironic.conf", "clouds.yaml"}
    for name in names:
        assert "$" not in (conf / name).read_text()
        assert stat.S_IMODE((conf / name).stat().st_mode) == 0o600
    assert Path(parsed(conf / "neutron.conf")["DEFAULT"]["api_paste_config"]).is_file()


def test_mtu_of_the_underlay_reaches_neutron(services: Services, tmp_path: Path) -> None:
    neutron = parsed(tmp_path / "state/conf/neutron.conf")
    assert neutron["DEFAULT"]["global_physnet_mtu"] == neutron["ml2"]["path_mtu"] == "9000"


def test_both_services_use_the_one_socket(services: Services, tmp_path: Path) -> None:
    for name in ("neutron", "ironic"):
        url = parsed(tmp_path / f"state/conf/{name}.conf")["database"]["connection"]
        assert f"/{name}?unix_socket={tmp_path}/mariadb.sock&" in url


def test_ironic_enables_all_this_distribution_brings() -> None:
    enabled = dict(line.split(" = ") for line in enabled_interfaces().splitlines())
    for point in metadata.distribution("opendpu").entry_points:
        if point.group.startswith("ironic.hardware.interfaces."):
            kind = point.group.rpartition(".")[2]
            assert point.name in enabled[f"enabled_{kind}_interfaces"].split(",")
            assert enabled[f"default_{kind}_interface"] == "dpu"
    assert all(enabled.values()), "an empty list would keep the conductor from starting"


@pytest.mark.parametrize("tools", [True, False])
def test_ipmi_is_enabled_where_its_tool_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tools: bool) -> None:
    if tools:
        (tmp_path / "ipmitool").write_text("#!/bin/sh\n")
        (tmp_path / "ipmitool").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ("redfish,ipmitool" in enabled_interfaces()) is tools


def test_clients_find_their_cloud(tmp_path: Path) -> None:
    central = Central(
        state=tmp_path / "s", run=tmp_path / "r", netns="mgmt", oob_address="10.98.0.254", ovn_nb="", ovn_sb=""
    )
    environment = central.environment()
    text = render("clouds.yaml")
    assert environment["OS_CLOUD"] in yaml.safe_load(text)["clouds"]
    assert environment["OS_CLIENT_CONFIG_FILE"] == str(central.clouds_yaml())


def test_api_programs_wait_for_the_schemas(services: Services) -> None:
    programs = services.programs()
    assert [program.name for program in programs] == ["neutron", "ironic"]
    assert not any(program.autostart for program in programs)
    assert all(program.netns == "mgmt" for program in programs)


def test_template_without_a_value_is_an_error() -> None:
    with pytest.raises(KeyError, match="netns"):
        render("ironic.conf", enabled_interfaces="")


@pytest.mark.parametrize(
    "template", [entry.name for entry in resources.files("opendpu.lab.central").joinpath("templates").iterdir()]
)
def test_templates_are_valid(template: str) -> None:
    text = resources.files("opendpu.lab.central").joinpath("templates", template).read_text()
    assert string.Template(text).is_valid()


def test_write_private_replaces_at_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, "new")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_wait_for_a_database_that_is_not_there_names_it(tmp_path: Path) -> None:
    with pytest.raises(DeadlineError, match=r"MariaDB does not answer on .*/mariadb\.sock after 0 s"):
        Database(tmp_path / "db", tmp_path / "run").wait_ready(0.1)
