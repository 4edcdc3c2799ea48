"""Commands on a DPU: its server, NICs, disks and volumes."""

from typing import Any

import click

from opendpu.agent.v1 import agent_pb2 as pb
from opendpu.cli.connect import agent_options, connect, open_lab
from opendpu.cli.show import format_option, show
from opendpu.errors import OpenDPUError
from opendpu.lab.layout import DEFAULT_NAME

GIB = 1 << 30
WAIT_S = 60


@click.group()
def server() -> None:
    """Servers as their DPUs see them."""


@server.command("list")
@click.option("--lab", "lab_name", default=DEFAULT_NAME, show_default=True, help="Name of the lab.")
@format_option
def server_list(lab_name: str, form: str) -> None:
    """All servers of the lab: chassis, power, health, what they hold."""
    lab = open_lab(lab_name)
    lab.enter_management()
    rows = []
    for item in lab.servers:
        row: dict[str, Any] = {"server": item.name, "agent": item.agent_address}
        try:
            with lab.agent(item, role="observer") as agent:
                seen = agent.get_server()
                row |= {
                    "chassis": seen.chassis,
                    "power": pb.Power.Name(seen.power).removeprefix("POWER_").lower(),
                    "healthy": seen.healthy,
                    "interfaces": len(agent.list_interfaces()),
                    "disks": len(agent.list_disks()),
                    "problems": list(seen.problems),
                }
        except OpenDPUError as error:
            row |= dict.fromkeys(("chassis", "power", "interfaces", "disks"), "")
            row |= {"healthy": False, "problems": [str(error)]}
        rows.append(row)
    show(rows, form)


@server.command("show")
@agent_options
@format_option
def server_show(form: str, **options: Any) -> None:
    """One server: card, limits, power, boot evidence."""
    with connect(**options) as agent:
        seen = agent.get_server()
    rows = [{"field": field.name, "value": str(value).strip()} for field, value in seen.ListFields()]
    show(rows, form)


@click.group()
def interface() -> None:
    """NICs that a DPU gives its server. (For Neutron ports use: openstack baremetal node vif attach.)"""


@interface.command("list")
@agent_options
@format_option
def interface_list(form: str, **options: Any) -> None:
    """NICs with their functions, ports and states."""
    with connect(**options) as agent:
        rows = [
            {
                "id": item.id,
                "function": item.representor,
                "slot": item.slot,
                "mac": item.spec.mac,
                "mtu": item.spec.mtu,
                "state": _state(item.status),
                "message": item.status.message,
                "rx": item.rx_packets,
                "tx": item.tx_packets,
            }
            for item in agent.list_interfaces()
        ]
    show(rows, form)


@click.group()
def disk() -> None:
    """Disks that a DPU offers its server."""


@disk.command("list")
@agent_options
@format_option
def disk_list(form: str, **options: Any) -> None:
    """Disks with their volumes, slots and states."""
    with connect(**options) as agent:
        rows = [
            {
                "id": item.id,
                "volume": item.spec.volume_id or "(config drive)",
                "serial": item.spec.serial,
                "slot": item.slot,
                "boot": item.spec.boot,
                "state": _state(item.status),
                "message": item.status.message,
                "read": item.bytes_read,
                "written": item.bytes_written,
            }
            for item in agent.list_disks()
        ]
    show(rows, form)


@disk.command("attach")
@click.argument("volume_id")
@click.option("--read-only", is_flag=True, help="The server may only read it.")
@agent_options
def disk_attach(volume_id: str, read_only: bool, **options: Any) -> None:
    """Plug a volume into a server, running or not; the disk's serial number is the volume's id.

    \b
    Example:
      opendpu volume create data1 --size-gib 1 --server server1
      opendpu disk attach data1 --server server1
    """
    with connect(**options) as agent:
        agent.create_disk(volume_id, volume_id=volume_id, serial=volume_id[:20], read_only=read_only)
        agent.wait_ready(disks=[volume_id], timeout=WAIT_S)
    click.echo(f"{volume_id} is plugged in")


@disk.command("detach")
@click.argument("volume_id")
@agent_options
def disk_detach(volume_id: str, **options: Any) -> None:
    """Unplug a volume; it keeps its data."""
    with connect(**options) as agent:
        agent.delete_disk(volume_id)
        agent.wait_deleted(disks=[volume_id], timeout=WAIT_S)
    click.echo(f"{volume_id} is unplugged")


@click.group()
def volume() -> None:
    """Volumes of the pool; any server's DPU can be asked."""


@volume.command("list")
@agent_options
@format_option
def volume_list(form: str, **options: Any) -> None:
    """Volumes, what they are clones of and who uses them."""
    with connect(**options) as agent:
        rows = [
            {
                "id": item.id,
                "image": item.spec.image,
                "size_bytes": item.spec.size_bytes,
                "allocated_bytes": item.allocated_bytes,
                "in_use_by": item.in_use_by,
            }
            for item in agent.list_volumes()
        ]
    show(rows, form)


@volume.command("create")
@click.argument("volume_id")
@click.option("--image", default="", help="Clone this image copy-on-write; without it the volume is blank.")
@click.option("--size-gib", type=click.FloatRange(min=0), default=0.0, help="Size in GiB; 0: the image's.")
@agent_options
def volume_create(volume_id: str, image: str, size_gib: float, **options: Any) -> None:
    """Make a volume.

    \b
    Examples:
      opendpu volume create data1 --size-gib 1 --server server1
      opendpu volume create root1 --image debian-12 --server server1
    """
    if not image and not size_gib:
        raise click.UsageError("a blank volume needs a size: add --size-gib 1, or --image NAME to clone one")
    with connect(**options) as agent:
        made = agent.create_volume(volume_id, image=image, size_bytes=int(size_gib * GIB) // 512 * 512)
    click.echo(f"{made.id}: {made.spec.size_bytes} bytes")


@volume.command("delete")
@click.argument("volume_id")
@agent_options
def volume_delete(volume_id: str, **options: Any) -> None:
    """Delete a volume and its data; one that a server uses is refused."""
    with connect(**options) as agent:
        agent.delete_volume(volume_id)
    click.echo(f"{volume_id} is deleted")


@click.group()
def image() -> None:
    """Images that volumes are cloned from."""


@image.command("list")
@agent_options
@format_option
def image_list(form: str, **options: Any) -> None:
    """Images in the pool."""
    with connect(**options) as agent:
        images = agent.list_images()
    show([{"name": item.name, "size_bytes": item.size_bytes, "sha256": item.sha256} for item in images], form)


@image.command("add")
@click.argument("name")
@click.argument("path", type=click.Path(exists=True, dir_okay=False))
@click.option("--lab", "lab_name", default=DEFAULT_NAME, show_default=True, help="Name of the lab.")
def image_add(name: str, path: str, lab_name: str) -> None:
    """Take a raw or qcow2 file into the lab's pool.

    \b
    Example:
      opendpu image add ubuntu-24.04 noble-server-cloudimg-amd64.img
    """
    from pathlib import Path

    open_lab(lab_name).pool.add_image(name, Path(path))
    click.echo(f"{name} is in the pool")


def _state(status: pb.Status) -> str:
    state = pb.State.Name(status.state).removeprefix("STATE_").lower()
    return f"{state} ({status.reason})" if status.reason else state
