"""Registers the lab's servers in Ironic, with the stock client, as an operator would."""

from opendpu.errors import OpenDPUError
from opendpu.lab.lab import Lab
from opendpu.lab.openstack_client import OpenStackShell
from opendpu.lab.server import Server
from opendpu.lab.wait import wait_for

RESOURCE_CLASS = "baremetal"


def enrol(lab: Lab, shell: OpenStackShell) -> None:
    """Bring each server that Ironic does not know, or that stopped on the way, to `available`."""
    known = {node["name"]: node for node in shell.run("baremetal", "node", "list")}
    for server in lab.servers:
        if server.name not in known:
            lab.progress(f"registering {server.name} in Ironic (hardware type dpu)")
            _create(lab, shell, server)
    for server in lab.servers:
        _make_available(shell, server.name)


def _create(lab: Lab, shell: OpenStackShell, server: Server) -> None:
    info = [
        word
        for key, value in server.driver_info(lab.authority, lab.secrets).items()
        for word in ("--driver-info", f"{key}={value}")
    ]
    shell.run(
        "baremetal", "node", "create", "--driver", "dpu", "--name", server.name, "--uuid", server.uuid,
        "--resource-class", RESOURCE_CLASS, *info,
    )  # fmt: skip


def _make_available(shell: OpenStackShell, name: str) -> None:
    state = provision_state(shell, name)
    if state == "enroll":
        _step(shell, name, "manage", "manageable")
        _step(shell, name, "inspect", "manageable")
        state = "manageable"
    if state == "manageable":
        _step(shell, name, "provide", "available")


def _step(shell: OpenStackShell, name: str, verb: str, target: str) -> None:
    shell.run("baremetal", "node", verb, name, json=False)
    wait_state(shell, name, {target}, timeout=120)


def provision_state(shell: OpenStackShell, name: str) -> str:
    return str(shell.run("baremetal", "node", "show", name, "--fields", "provision_state")["provision_state"])


def wait_state(shell: OpenStackShell, name: str, targets: set[str], *, timeout: float) -> str:
    """Wait until a node's provision state is one of `targets`; Ironic's API has no events. Raises with the node's
    last_error when it gets into a failed state instead."""
    final = {"deploy failed", "clean failed", "inspect failed", "error", "enroll", "rescue failed", "unrescue failed"}

    def look() -> str:
        fields = ("provision_state", "last_error", "target_provision_state")
        node = shell.run("baremetal", "node", "show", name, "--fields", *fields)
        state = str(node["provision_state"])
        settled = not node["target_provision_state"] or state in final
        if state in targets and (settled or state.endswith("failed")):
            return state
        if state in final - targets and settled and node["last_error"]:
            raise OpenDPUError(f"{name} is {state!r}: {node['last_error']}")
        return ""

    return str(wait_for(look, timeout=timeout, what=f"{name} to be {' or '.join(sorted(targets))}", every=0.2))
