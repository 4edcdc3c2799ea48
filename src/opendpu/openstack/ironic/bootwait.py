"""Waiting for evidence, seen from outside, that the operating system came up."""

import time
from datetime import UTC, datetime

from opendpu.agent.client import AgentClient
from opendpu.agent.v1 import agent_pb2 as pb
from opendpu.errors import DeadlineError, UnavailableError

# A restart of the agent takes about this long; asking it sooner only fills the log.
_RETRY_AFTER = 1.0


def wait_for_boot(client: AgentClient, before: pb.Server, *, packet: bool, timeout: float) -> pb.Server:
    """Returns the card's evidence once the host has read its boot disk and, if `packet`, sent a packet.

    `before` is what the card reported before power-on: evidence counts only with a newer power-on. Raises
    DeadlineError after `timeout` seconds saying how far the host came and what to look at. An agent that goes away
    meanwhile may come back until then.
    """
    deadline = time.monotonic() + timeout
    seen: pb.Server | None = None
    lost = ""
    while (left := deadline - time.monotonic()) > 0:
        try:
            for server in client.watch_server(left):
                lost = ""
                if not server.HasField("powered_on") or server.powered_on == before.powered_on:
                    continue
                seen = server
                if server.first_packet_seen if packet else server.boot_disk_bytes_read:
                    return server
        except DeadlineError:
            break
        except UnavailableError as error:
            lost = str(error)
        # The stream ended before its time: the agent is stopping or unreachable.
        time.sleep(min(_RETRY_AFTER, max(0.0, deadline - time.monotonic())))
    raise DeadlineError(_story(seen, lost, timeout))


def _story(seen: pb.Server | None, lost: str, timeout: float) -> str:
    within = f"within {timeout:.0f} s (driver_info/dpu_boot_timeout)"
    if lost:
        return f"The agent went away while the host booted and did not come back {within}: {lost}"
    if seen is None:
        return (
            f"The card saw no power-on of its host {within}, though the BMC reported one: check that the node's "
            "redfish_address or ipmi_address is the BMC of the server that holds this card."
        )
    if not seen.boot_disk_bytes_read:
        return (
            f"No byte was read from the boot disk {within} of power-on: firmware did not find it. Check that the "
            "image has a boot loader for this firmware (UEFI: an EFI system partition), that the boot order starts "
            "with disk, and what the console says."
        )
    return (
        f"The host read {seen.boot_disk_bytes_read} bytes of the boot disk {within} of power-on but sent no packet: "
        "the operating system did not come up, or configures no network. Look at the console, check the image's "
        "drivers and network configuration, or give it more time."
    )


def evidence(server: pb.Server) -> list[tuple[str, datetime]]:
    """The stages that the card saw itself, with their times by its clock."""
    stages = []
    if server.HasField("powered_on"):
        stages.append(("power-on-done", server.powered_on.ToDatetime(tzinfo=UTC)))
    if server.HasField("first_disk_read"):
        stages.append(("first-disk-read", server.first_disk_read.ToDatetime(tzinfo=UTC)))
    if server.HasField("first_packet"):
        stages.append(("first-packet", server.first_packet.ToDatetime(tzinfo=UTC)))
    return stages
