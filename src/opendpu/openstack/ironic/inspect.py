"""Inspect interface `dpu`: out of band, the host need not be on. The BMC tells CPUs and memory, the agent the card."""

import hashlib
from typing import Any

import sushy
from ironic import objects
from ironic.common import exception, states, utils
from ironic.drivers import base
from ironic.drivers.modules.redfish import inspect as redfish_inspect
from ironic.drivers.modules.redfish import utils as redfish_utils
from oslo_log import log

from opendpu.agent.v1 import agent_pb2 as pb

from . import agent

LOG = log.getLogger(__name__)
_MIB_PER_GIB = 1024


class DPUInspect(base.InspectInterface):
    def get_properties(self) -> dict[str, str]:
        return agent.PROPERTIES

    def validate(self, task: Any) -> None:
        agent.parse_driver_info(task.node)

    def inspect_hardware(self, task: Any) -> str:
        """Fills `properties`, `extra["dpu"]`, and makes Ironic ports. Raises HardwareInspectionFailure."""
        node = task.node
        with agent.session(task, exception.HardwareInspectionFailure, "The agent did not tell its card") as client:
            server = client.get_server()
        properties = {**node.properties, **(_from_bmc(task) if node.management_interface == "redfish" else {})}
        # The host has no disk of its own.
        properties.setdefault("local_gb", 0)
        if "cpu_arch" not in properties:
            LOG.warning("The BMC of node %s does not tell its processors: cpu_arch is taken to be x86_64", node.uuid)
            properties["cpu_arch"] = "x86_64"
        properties["capabilities"] = utils.get_updated_capabilities(
            properties.get("capabilities", ""), {"boot_mode": "uefi"}
        )
        missing = sorted(self.ESSENTIAL_PROPERTIES - set(properties))
        if missing:
            raise exception.HardwareInspectionFailure(
                f"Neither the BMC nor the node's properties tell {', '.join(missing)}: set it with "
                "`baremetal node set --property NAME=VALUE`."
            )
        node.properties = properties
        node.extra = {**node.extra, "dpu": _describe(server)}
        node.save()
        _make_ports(task, server)
        return str(states.MANAGEABLE)


def _from_bmc(task: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    try:
        system = redfish_utils.get_system(task.node)
        if system.memory_summary and system.memory_summary.size_gib:
            found["memory_mb"] = int(system.memory_summary.size_gib * _MIB_PER_GIB)
        # ComputerSystem.ProcessorSummary: sushy reads it only together with the processors, which a BMC need not have.
        count = (system.json.get("ProcessorSummary") or {}).get("Count")
        if isinstance(count, int) and count > 0:
            found["cpus"] = count
        try:
            architecture = system.processors.summary.architecture
        except (sushy.exceptions.MissingAttributeError, sushy.exceptions.ResourceNotFoundError):
            architecture = None
    except sushy.exceptions.SushyError as error:
        raise exception.HardwareInspectionFailure(f"The BMC did not describe the system: {error}") from error
    if name := redfish_inspect.PROCESSOR_INSTRUCTION_SET_MAP.get(architecture):
        found["cpu_arch"] = name
    return found


def _describe(server: pb.Server) -> dict[str, Any]:
    limits = server.limits
    return {
        "driver": server.card_driver,
        "model": server.card_model,
        "serial": server.card_serial,
        "chassis": server.chassis,
        "agent_version": server.agent_version,
        "limits": {
            "pfs": limits.pfs,
            "vfs_per_pf": limits.vfs_per_pf,
            "sfs_per_pf": limits.sfs_per_pf,
            "slots": limits.slots,
            "mtu_max": limits.mtu_max,
        },
    }


def _make_ports(task: Any, server: pb.Server) -> None:
    """Ironic attaches one VIF per Ironic port, so a node needs a port for each function it may use at a time.

    They stand for places, not for hardware: while a VIF is attached its port shows the VIF's MAC address. Ports that
    exist count.
    """
    functions = server.limits.pfs * server.limits.vfs_per_pf or 1
    wanted = min(agent.parse_driver_info(task.node).ports, functions)
    have = {port.address for port in task.ports}
    made = len(task.ports)
    index = 0
    while made < wanted:
        address = _address(task.node.uuid, index)
        index += 1
        if address in have:
            continue
        port = objects.Port(task.context, node_id=task.node.id, address=address, pxe_enabled=False)
        try:
            port.create()
        except exception.MACAlreadyExists:
            # It is one of ours that a VIF's address hides, or a collision: the next index is as good.
            continue
        made += 1
    task.ports = objects.Port.list_by_node_id(task.context, task.node.id)


def _address(node_uuid: str, index: int) -> str:
    """A locally administered unicast MAC address (IEEE 802, bit 1 set and bit 0 clear in the first octet)."""
    digest = hashlib.sha256(f"{node_uuid}/{index}".encode()).digest()
    octets = bytes([digest[0] & 0xFC | 0x02]) + digest[1:6]
    return ":".join(f"{octet:02x}" for octet in octets)
