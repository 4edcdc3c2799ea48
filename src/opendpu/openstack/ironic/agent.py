"""From a node's `driver_info` to its agent: the one place where the driver's parameters are read and checked."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ironic.common import exception

from opendpu.agent.client import AgentClient
from opendpu.errors import OpenDPUError

PROPERTIES = {
    "dpu_agent_address": "host:port of the agent on the node's DPU, for example 192.0.2.10:7443. Required.",
    "dpu_agent_ca": "Path on the conductor of the CA certificate (PEM) that signed the agent's certificate. Required.",
    "dpu_agent_certificate": "Path on the conductor of its client certificate (PEM, role conductor). Required.",
    "dpu_agent_key": "Path on the conductor of that certificate's key (PEM). Required.",
    "dpu_chassis": "OVN chassis host name to bind Neutron ports to. Optional; asked from the agent by default.",
    "dpu_boot_timeout": "Seconds from power-on in which the operating system must show itself. Optional; 600.",
    "dpu_ports": "How many Ironic ports inspection makes, at most the card's functions. Optional; 8.",
}
_TLS_FILES = ("dpu_agent_ca", "dpu_agent_certificate", "dpu_agent_key")
_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?):(?P<port>\d{1,5})")
_HOST_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252})")

# The agent's own deadlines are 60 s (see its configuration); a little more lets its reason arrive before ours.
READY_TIMEOUT = 65.0
RELEASE_TIMEOUT = 65.0


@dataclass(frozen=True)
class AgentInfo:
    """Checked `driver_info`. `boot_timeout` is in seconds; `chassis` is empty when the agent must be asked."""

    address: str
    ca: str
    certificate: str
    key: str
    chassis: str
    boot_timeout: int
    ports: int


def parse_driver_info(node: Any) -> AgentInfo:
    """Raises MissingParameterValue or InvalidParameterValue, naming what to set. Reaches for nothing but files."""
    info = node.driver_info
    required = ("dpu_agent_address", *_TLS_FILES)
    missing = [name for name in required if not info.get(name)]
    if missing:
        how = "; ".join(f"{name}: {PROPERTIES[name]}" for name in missing)
        raise exception.MissingParameterValue(
            f"Node {node.uuid} lacks {', '.join(missing)}. Set it with "
            f"`baremetal node set --driver-info NAME=VALUE`. {how}"
        )
    values = {name: info[name] for name in required}
    for name, value in values.items():
        if not isinstance(value, str):
            raise _invalid(name, value, "must be a string")
    match = _ADDRESS.fullmatch(values["dpu_agent_address"])
    if match is None or not 0 < int(match["port"]) < 65536:
        raise _invalid("dpu_agent_address", values["dpu_agent_address"], "must be host:port, for example 10.0.0.5:7443")
    for name in _TLS_FILES:
        if not os.path.isabs(values[name]) or not os.path.isfile(values[name]):
            raise _invalid(name, values[name], "must be the absolute path of a PEM file on the conductor's machine")
        if not os.access(values[name], os.R_OK):
            raise _invalid(name, values[name], "must be readable by the conductor: check its owner and mode")
    chassis = info.get("dpu_chassis") or ""
    if not isinstance(chassis, str) or (chassis and not _HOST_NAME.fullmatch(chassis)):
        raise _invalid("dpu_chassis", chassis, "must be the OVN chassis' host name, or left out")
    return AgentInfo(
        address=values["dpu_agent_address"],
        ca=values["dpu_agent_ca"],
        certificate=values["dpu_agent_certificate"],
        key=values["dpu_agent_key"],
        chassis=chassis,
        boot_timeout=_whole_number(info, "dpu_boot_timeout", default=600, low=1, high=86400),
        ports=_whole_number(info, "dpu_ports", default=8, low=1, high=256),
    )


def connect(task: Any) -> AgentClient:
    """A client of the node's agent, whose calls carry Ironic's request id into the card's logs. Close it after use."""
    info = parse_driver_info(task.node)
    return AgentClient(
        info.address,
        ca=info.ca,
        certificate=info.certificate,
        key=info.key,
        request_id=getattr(task.context, "request_id", None) or "",
    )


def chassis_of(task: Any, client: AgentClient) -> str:
    """The chassis host name that Neutron's binding:host_id must be. Raises NetworkError if nobody knows it."""
    chassis = parse_driver_info(task.node).chassis or client.get_server().chassis
    if not chassis:
        raise exception.NetworkError(
            f"The agent of node {task.node.uuid} does not know its OVN chassis: set external_ids:hostname in the SoC's "
            "Open vSwitch, or driver_info/dpu_chassis of the node."
        )
    return chassis


@contextmanager
def session(task: Any, error: type[Exception], doing: str) -> Iterator[AgentClient]:
    """A client for one job. The agent's refusals leave as this Ironic exception; they say what a person can do."""
    try:
        with connect(task) as client:
            yield client
    except OpenDPUError as refusal:
        raise error(f"{doing}: {refusal}") from refusal


def _whole_number(info: Any, name: str, *, default: int, low: int, high: int) -> int:
    value = info.get(name, default)
    try:
        # The CLI sends strings. bool is an int to Python, not to a person.
        number = int(value) if isinstance(value, int | str) and not isinstance(value, bool) else None
    except ValueError:
        number = None
    if number is None or not low <= number <= high:
        raise _invalid(name, value, f"must be a whole number from {low} to {high}")
    return number


def _invalid(name: str, value: object, rule: str) -> Exception:
    error: Exception = exception.InvalidParameterValue(f"driver_info/{name} is {value!r}: it {rule}.")
    return error
