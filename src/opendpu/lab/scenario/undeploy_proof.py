"""Proof that a server given back is clean: nothing of the tenant is left on the card, in the pool or in memory."""

import os

from opendpu.lab.scenario.proof import Proof
from opendpu.lab.scenario.tenant import Tenant
from opendpu.lab.server import Server


def undeploy_clean(proof: Proof, tenant: Tenant, servers: list[Server], deployed_ports: dict[str, str]) -> None:
    """Look at each server after its undeploy; `deployed_ports` maps a server's name to the Neutron port it had."""
    for server in servers:
        name = server.name
        proof.check(tenant.state(name) == "available", f"{name} is available to the next tenant")
        with tenant.lab.agent(server) as agent:
            proof.check(not agent.list_interfaces(), f"{server.soc} holds no interface")
            proof.check(not agent.list_disks(), f"{server.soc} holds no disk")
            proof.check(not agent.list_volumes(), f"no clone is left in the pool, as {server.soc} sees it")
        proof.check(_zero(server), f"the memory of {name} holds nothing but zeros")
        known = {port["ID"] for port in tenant.shell.run("port", "list")}
        proof.check(deployed_ports[name] not in known, f"the Neutron port of {name} is deleted")
        targets = tenant.shell.run("baremetal", "volume", "target", "list", "--node", server.uuid)
        proof.check(not targets, f"{name} has no volume target")
    images = {path.name for path in (tenant.lab.layout.pool / "volumes").glob("*")}
    proof.check(not images, "the pool's volume folder is empty")
    proof.measured["memory_bytes_checked"] = sum(server.ram_file.stat().st_size for server in servers)


def _zero(server: Server) -> bool:
    """Whether the host's DRAM has no byte but zero: read where the file has data at all (lseek(2), SEEK_DATA)."""
    with server.ram_file.open("rb") as file:
        position, size = 0, server.ram_file.stat().st_size
        while position < size:
            try:
                position = os.lseek(file.fileno(), position, os.SEEK_DATA)
            except OSError:  # ENXIO: no data from here on
                return True
            end = os.lseek(file.fileno(), position, os.SEEK_HOLE)
            while position < end:
                block = os.pread(file.fileno(), min(1 << 20, end - position), position)
                if block.strip(b"\0"):
                    return False
                position += len(block)
    return True
