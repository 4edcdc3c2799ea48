"""`opendpu lab`: an emulated data centre to play with."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from opendpu.cli.connect import open_lab
from opendpu.cli.show import format_option, show, stopwatch
from opendpu.errors import NotFoundError, OpenDPUError
from opendpu.lab.layout import DEFAULT_NAME, Layout

if TYPE_CHECKING:
    from opendpu.lab.scenario.tenant import Tenant


@click.group()
@click.option("--name", default=DEFAULT_NAME, show_default=True, help="Name of the lab; several can be up at once.")
@click.pass_context
def lab(context: click.Context, name: str) -> None:
    """An emulated data centre: OVN, Neutron, Ironic and bare-metal servers with DPUs, on this machine.

    \b
    Examples:
      opendpu lab up --servers 3
      opendpu lab deploy server1 && opendpu lab ssh server1
      opendpu lab exec -- openstack baremetal node list
      opendpu lab logs soc1-agent
      opendpu lab down
    """
    context.obj = name


@lab.command()
@click.option("--servers", type=click.IntRange(1, 90), help="How many bare-metal servers (first time: 2).")
@click.option("--accel", type=click.Choice(["tcg", "kvm"]), help="How hosts run; probed when not given.")
@click.option("--no-enrol", is_flag=True, help="Do not register the servers in Ironic.")
@click.pass_obj
def up(name: str, servers: int | None, accel: str | None, no_enrol: bool) -> None:
    """Bring the lab up, or bring back what is missing of it. Idempotent."""
    from opendpu.lab.enrol import enrol
    from opendpu.lab.lab import Lab
    from opendpu.lab.openstack_client import OpenStackShell

    say = stopwatch()
    built = Lab(Layout.make(name), progress=say)
    built.up(servers=servers, accel=accel)
    if not no_enrol:
        with OpenStackShell(environment=built.central.environment(), netns=built.layout.management) as shell:
            enrol(built, shell)
    say(f"{len(built.servers)} servers are available; deploy one with: opendpu lab deploy server1")


@lab.command()
@click.option("--purge", is_flag=True, help="Drop databases, volumes and keys too; images stay in the cache.")
@click.pass_obj
def down(name: str, purge: bool) -> None:
    """Stop everything: no process, namespace or mount is left. Works on the remains of an interrupted `up` too."""
    from opendpu.lab.lab import Lab

    try:
        layout = Layout.find(name)
    except NotFoundError:
        layout = Layout.make(name)
    built = Lab(layout)
    built.down(purge=purge)
    if left := built.remains():
        raise OpenDPUError("still there: " + "; ".join(left))
    click.echo(f"lab {name!r} is down")


@lab.command()
@format_option
@click.pass_obj
def status(name: str, form: str) -> None:
    """Every program of the lab and its state."""
    built = open_lab(name)
    rows = []
    for supervisor in (built.supervisor, *(server.supervisor for server in built.servers)):
        if not supervisor.running():
            rows.append({"node": supervisor.name, "program": "(supervisor)", "state": "DOWN", "pid": 0})
            continue
        rows += [
            {"node": supervisor.name, "program": program, "state": state, "pid": pid}
            for program, (state, pid) in sorted(supervisor.programs().items())
        ]
    show(rows, form)
    if any(row["state"] not in ("RUNNING", "STARTING") for row in rows):
        sys.exit(3)


@lab.command()
@click.argument("server")
@click.option("--image", default="debian-12", show_default=True, help="Image the system disk is a clone of.")
@click.option("--size-gib", default=2, show_default=True, help="Size of the system disk.")
@click.pass_obj
def deploy(name: str, server: str, image: str, size_gib: int) -> None:
    """Deploy a server for a sample tenant, with the stock clients; returns when SSH answers."""
    say = stopwatch()
    with _tenant(name) as tenant:
        node = tenant.lab.server(server).name
        say("network, security group, key")
        tenant.prepare()
        if tenant.state(node) != "active":
            say(f"baremetal node deploy {node}: a clone of {image}")
            tenant.deploy(node, image=image, size_gib=size_gib)
        else:
            tenant.ensure_power(node)
        guest = tenant.guest(node)
        tenant.wait_active(node)
        say("an operating system runs; waiting for SSH")
        guest.wait_ssh(timeout=600)
        say(f"{node} answers at {guest.address}: opendpu lab ssh {node}")


@lab.command()
@click.argument("server")
@click.pass_obj
def undeploy(name: str, server: str) -> None:
    """Give a server back: its clone, its NICs and its memory are wiped."""
    with _tenant(name) as tenant:
        tenant.undeploy(tenant.lab.server(server).name)
    click.echo(f"{server} is available")


@lab.command()
@click.argument("server")
@click.argument("command", nargs=-1)
@click.pass_obj
def ssh(name: str, server: str, command: tuple[str, ...]) -> None:
    """A shell on a deployed server, as its tenant. `opendpu lab ssh server1 -- uname -a` runs one command."""
    with _tenant(name) as tenant:
        argv = tenant.guest(tenant.lab.server(server).name).ssh_command(*command)
    os.execvp(argv[0], argv)  # noqa: S606


@lab.command()
@click.argument("server")
@click.pass_obj
def console(name: str, server: str) -> None:
    """The serial console of a server; leave it with Ctrl-]."""
    from opendpu.cli.console import attach

    attach(open_lab(name).server(server).console_socket)


@lab.command()
@click.argument("program", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on printing what is added.")
@click.option("-n", "--lines", default=50, show_default=True, help="How many of the last lines.")
@click.pass_obj
def logs(name: str, program: str | None, follow: bool, lines: int) -> None:
    """A program's log; without a name, which there are. `server1` is that server's serial console."""
    layout = Layout.find(name)
    files = {path.stem: path for path in sorted(layout.state.glob("**/*.log"))}
    files |= {server.name: server.console_log for server in open_lab(name).servers}
    if program is None:
        click.echo("\n".join(sorted(files)))
        return
    if program not in files:
        raise NotFoundError(f"no log of {program!r}; see: opendpu lab logs")
    command = ["tail", f"-n{lines}", *(["-F"] if follow else []), str(files[program])]
    os.execvp("tail", command)  # noqa: S606


@lab.command("exec", context_settings={"ignore_unknown_options": True})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def execute(name: str, command: tuple[str, ...]) -> None:
    """Run a command on the management node, with the OpenStack clients set up for the lab.

    \b
    Example:
      opendpu lab exec -- openstack baremetal node list
    """
    sys.exit(_on_management(name, list(command)))


@lab.command()
@click.pass_obj
def shell(name: str) -> None:
    """A shell on the management node: openstack, baremetal, ovn-nbctl and opendpu work there."""
    sys.exit(_on_management(name, [os.environ.get("SHELL", "/bin/sh")]))


def _on_management(name: str, command: list[str]) -> int:
    built = open_lab(name)
    built.enter_management()
    path = f"{os.path.dirname(sys.executable)}:{os.environ.get('PATH', '')}"
    environment = os.environ | built.central.environment() | {"PATH": path, "OVN_NB_DB": "tcp:127.0.0.1:6641"}
    return subprocess.run(command, env=environment, check=False).returncode


@contextmanager
def _tenant(name: str) -> Iterator["Tenant"]:
    from opendpu.lab.openstack_client import OpenStackShell
    from opendpu.lab.scenario.tenant import Tenant

    built = open_lab(name)
    built.enter_management()
    with OpenStackShell(environment=built.central.environment(), netns=built.layout.management) as stock:
        yield Tenant(built, stock)
