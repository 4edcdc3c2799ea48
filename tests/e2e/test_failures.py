"""Deploys that cannot work: each ends with a node that is clean and a last_error that says what to do."""

import uuid
from collections.abc import Iterator

import pytest

from opendpu.agent.client import AgentClient
from opendpu.errors import ResourceExhaustedError
from opendpu.lab.enrol import wait_state
from opendpu.lab.scenario.tenant import Tenant
from opendpu.lab.server import Server


@pytest.fixture
def server(tenant: Tenant) -> Iterator[Server]:
    server = tenant.lab.servers[2]
    yield server
    if tenant.state(server.name) != "available":
        tenant.undeploy(server.name)
    with tenant.lab.agent(server) as agent:
        assert not agent.list_interfaces()
        assert not agent.list_disks()
        assert not agent.list_volumes()


def last_error(tenant: Tenant, server: Server) -> str:
    return str(tenant.shell.run("baremetal", "node", "show", server.name, "--fields", "last_error")["last_error"])


def fails(tenant: Tenant, server: Server, *, timeout: float = 120) -> str:
    """The last_error of a deploy that failed; by then nothing of it is on the card."""
    wait_state(tenant.shell, server.name, {"deploy failed"}, timeout=timeout)
    return last_error(tenant, server)


def clean(tenant: Tenant, server: Server) -> None:
    with tenant.lab.agent(server) as agent:
        assert not agent.list_interfaces()
        assert not agent.list_disks()
    power = tenant.shell.run("baremetal", "node", "show", server.name, "--fields", "power_state")["power_state"]
    assert power == "power off"


def test_image_that_does_not_exist(tenant: Tenant, server: Server) -> None:
    tenant.deploy(server.name, image="no-such-image")
    error = fails(tenant, server)
    assert "no-such-image" in error
    clean(tenant, server)


def test_nothing_boots_within_the_deadline(tenant: Tenant, server: Server) -> None:
    """A blank volume: firmware finds nothing to boot."""
    with tenant.lab.agent(server) as agent:
        volume = f"blank-{uuid.uuid4().hex[:8]}"
        agent.create_volume(volume, size_bytes=64 << 20)
    tenant.shell.run("baremetal", "node", "set", server.name, "--driver-info", "dpu_boot_timeout=20", json=False)
    try:
        tenant.deploy_volume(server.name, volume)
        error = fails(tenant, server, timeout=180)
        assert "boot" in error
        assert "20" in error
        clean(tenant, server)
    finally:
        tenant.shell.run("baremetal", "node", "unset", server.name, "--driver-info", "dpu_boot_timeout", json=False)
        with tenant.lab.agent(server) as agent:
            agent.delete_volume(volume)


def test_agent_unreachable(tenant: Tenant, server: Server) -> None:
    agent = f"{server.soc}-agent"
    server.supervisor.stop_program(agent)
    try:
        tenant.deploy(server.name)
        error = fails(tenant, server)
        assert server.agent_address in error
    finally:
        server.supervisor.start_program(agent)
        tenant.lab.wait_agents()


def fill(agent: AgentClient) -> tuple[list[str], str]:
    """Take NICs until one is refused; their ids, and what the refusal says."""
    taken: list[str] = []
    while True:
        port = str(uuid.uuid4())
        try:
            agent.create_interface(port, port_id=port, mac=f"02:00:00:00:01:{len(taken):02x}", mtu=1500)
        except ResourceExhaustedError as error:
            return taken, str(error)
        taken.append(port)


def test_card_that_is_full(tenant: Tenant, server: Server) -> None:
    """Somebody took all of the card: one more NIC is refused with what to do, so is a deploy, and theirs stay."""
    with tenant.lab.agent(server) as agent:
        taken, refusal = fill(agent)
    assert "delete one first" in refusal
    try:
        assert len(taken) > 8
        tenant.deploy(server.name)
        error = fails(tenant, server)
        assert "interface" in error
        with tenant.lab.agent(server) as agent:
            assert {interface.id for interface in agent.list_interfaces()} == set(taken)
    finally:
        with tenant.lab.agent(server) as agent:
            for port in taken:
                agent.delete_interface(port)
            agent.wait_deleted(interfaces=taken, timeout=60)
