"""MariaDB, Neutron and Ironic as the lab runs them, used through the stock OpenStack client."""

import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from opendpu.errors import DeadlineError, UnavailableError
from opendpu.lab.central import Central
from opendpu.lab.openstack_client import OpenStackError, OpenStackShell

pytestmark = pytest.mark.root


@pytest.fixture(scope="session")
def shell(plane: Any) -> Iterator[OpenStackShell]:
    with OpenStackShell(netns=plane.netns, environment=plane.central.environment()) as shell:
        yield shell


@pytest.fixture
def network(shell: OpenStackShell, request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"net-{request.node.name}"[:60]
    shell.run("network", "create", name)
    shell.run("subnet", "create", "--network", name, "--subnet-range", "10.7.0.0/24", f"{name}-4")
    yield name
    for port in shell.run("port", "list", "--network", name):
        shell.run("port", "delete", port["ID"], json=False)
    shell.run("network", "delete", name, json=False)


def eventually(ask: Callable[[], Any], wanted: Any, *, timeout: float = 15) -> float:
    """Seconds until `ask` returns what is wanted."""
    began = time.monotonic()
    while (seen := ask()) != wanted:
        assert time.monotonic() - began < timeout, f"still {seen!r}, not {wanted!r}, after {timeout} s"
        time.sleep(0.1)
    return time.monotonic() - began


def sbctl(root: Path, *arguments: str) -> str:
    command = ["ovn-sbctl", "--timeout=10", f"--db=unix:{root}/run/ovn/sb.sock", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_network_subnet_and_port_are_made(shell: OpenStackShell, network: str) -> None:
    port = shell.run("port", "create", "--network", network, "made")
    assert port["fixed_ips"][0]["ip_address"].startswith("10.7.0.")
    assert port["port_security_enabled"] is True
    # The underlay's 9000 less Geneve over IPv4.
    assert shell.run("network", "show", network)["mtu"] == 8942


def test_default_security_group_has_its_rules(shell: OpenStackShell, network: str) -> None:
    shell.run("port", "create", "--network", network, "first")  # makes the project's default group
    rules = shell.run("security", "group", "rule", "list", "default")
    assert sorted((rule["Direction"], rule["Ethertype"]) for rule in rules) == [
        ("egress", "IPv4"), ("egress", "IPv6"), ("ingress", "IPv4"), ("ingress", "IPv6"),
    ]  # fmt: skip
    group = shell.run("security", "group", "create", "web")
    shell.run("security", "group", "rule", "create", "--protocol", "tcp", "--dst-port", "22", group["id"])
    assert any(r["Port Range"] == "22:22" for r in shell.run("security", "group", "rule", "list", group["id"]))
    shell.run("security", "group", "delete", group["id"], json=False)


def test_ironic_offers_the_dpu_hardware_type(shell: OpenStackShell) -> None:
    assert [driver["name"] for driver in shell.run("baremetal", "driver", "list")] == ["dpu"], (
        "the one hardware type, and none with parts missing"
    )
    node = shell.run("baremetal", "node", "create", "--driver", "dpu", "--name", "probe")
    try:
        for kind in ("boot", "deploy", "inspect", "network", "storage"):
            assert node[f"{kind}_interface"] == "dpu"
        assert node["power_interface"] == node["management_interface"] == "redfish"
    finally:
        shell.run("baremetal", "node", "delete", node["uuid"], json=False)


def chassis(root: Path, name: str) -> None:
    """What ovn-controller writes of itself into the southbound database."""
    sbctl(root, "--may-exist", "chassis-add", name, "geneve", "10.99.0.9")
    uuid = sbctl(root, "get", "chassis", name, "_uuid")
    sbctl(root, "set", "chassis", name, f"hostname={name}")
    if not sbctl(root, "--bare", "--columns=_uuid", "find", "chassis_private", f"name={name}"):
        sbctl(root, "create", "chassis_private", f"name={name}", f"chassis={uuid}")


@pytest.mark.parametrize("killed", [False, True], ids=["started", "killed"])
def test_port_turns_active_by_ovn_events(
    plane: Any, shell: OpenStackShell, network: str, home: tuple[Path, str], killed: bool
) -> None:
    """With no other Neutron process, and at once after a kill: the dead process's place in the hash ring is taken."""
    root, _ = home
    chassis(root, "ch1")
    eventually(lambda: [agent["Host"] for agent in shell.run("network", "agent", "list")], ["ch1"])
    if killed:
        plane.kill("neutron")
        plane.central.wait_ready(60)
    port = shell.run("port", "create", "--network", network, "--host", "ch1", "bound")
    assert port["binding_vif_type"] == "ovs"
    assert port["status"] == "DOWN"
    sbctl(root, "lsp-bind", port["id"], "ch1")
    binding = sbctl(root, "--bare", "--columns=_uuid", "find", "port_binding", f"logical_port={port['id']}")
    sbctl(root, "set", "port_binding", binding, "up=true")
    eventually(lambda: shell.run("port", "show", port["id"])["status"], "ACTIVE", timeout=10)


def test_ports_are_made_in_parallel(plane: Any, network: str) -> None:
    def make(index: int) -> str:
        with OpenStackShell(netns=plane.netns, environment=plane.central.environment()) as own:
            return str(own.run("port", "create", "--network", network, f"p{index}")["mac_address"])

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(make, range(4)))) == 4


@pytest.mark.parametrize("service", ["mariadb", "neutron", "ironic"])
def test_a_killed_service_comes_back(plane: Any, shell: OpenStackShell, network: str, service: str) -> None:
    node = shell.run("baremetal", "node", "create", "--driver", "dpu", "--name", f"kept-{service}")
    plane.kill(service)
    plane.central.wait_ready(60)
    assert shell.run("network", "show", network)["name"] == network
    assert shell.run("baremetal", "node", "show", node["uuid"])["name"] == f"kept-{service}"
    shell.run("port", "create", "--network", network, "after")
    shell.run("baremetal", "node", "delete", node["uuid"], json=False)


def test_wait_ready_names_what_is_missing(plane: Any) -> None:
    plane.supervisor.stop_program("neutron")
    try:
        with pytest.raises(DeadlineError, match=r"after 1 s: neutron: 127\.0\.0\.1:9696 does not answer") as failure:
            plane.central.wait_ready(1)
        assert "neutron.log" in str(failure.value)
    finally:
        plane.supervisor.start_program("neutron")
        plane.central.wait_ready(60)


def test_a_second_start_migrates_nothing(plane: Any) -> None:
    said: list[str] = []
    plane.central.prepare(said.append)
    plane.central.initialise(said.append)
    assert said == []


def test_one_template_is_cached(home: tuple[Path, str], plane: Any) -> None:
    root, _ = home
    stamp = (root / "central/mariadb/schema-version").read_text()
    folders = [entry for entry in (root / "cache/mariadb").iterdir() if entry.is_dir()]
    assert [folder.name for folder in folders] == [stamp], "of the installed versions"
    assert (folders[0] / "data/neutron").is_dir()
    assert (folders[0] / "data/ironic").is_dir()


def test_client_says_what_the_service_said(shell: OpenStackShell) -> None:
    with pytest.raises(OpenStackError, match="No Network found for nowhere"):
        shell.run("network", "show", "nowhere")
    assert shell.run("network", "list") is not None, "the shell lives on"


def test_client_costs_little_and_leaves_nothing(plane: Any) -> None:
    with OpenStackShell(netns=plane.netns, environment=plane.central.environment()) as own:
        own.run("network", "list")
        began = time.monotonic()
        own.run("network", "list")
        assert time.monotonic() - began < 2.5, "a client of its own takes over three seconds"
        pid = own._process.pid
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(UnavailableError):
        own.run("network", "list")


def test_secrets_and_sockets_are_roots_only(home: tuple[Path, str], plane: Any) -> None:
    root, _ = home
    assert isinstance(plane.central, Central)
    for path in (root / "central/conf").iterdir():
        assert path.stat().st_mode & 0o077 == 0, path
    for folder in ("central", "central/mariadb", "run/central", "central/conf"):
        assert (root / folder).stat().st_mode & 0o077 == 0, folder
