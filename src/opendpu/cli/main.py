"""`opendpu`: what the stock clients (openstack, baremetal) do not do."""

import sys

import click

from opendpu import __version__
from opendpu.cli.card import disk, image, interface, server, volume
from opendpu.cli.demo import demo
from opendpu.cli.lab import lab
from opendpu.errors import OpenDPUError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="opendpu")
def cli() -> None:
    """OpenDPU: bare-metal servers whose disks and networks come from their DPUs.

    \b
    Examples:
      opendpu lab up --servers 2        an emulated data centre on this machine
      opendpu lab deploy server1        a server from a cloned volume
      opendpu lab ssh server1           a prompt on it
      opendpu server list               what the DPUs say
      opendpu disk attach data1 --server server1
    """


for command in (lab, demo, server, interface, disk, volume, image):
    cli.add_command(command)


def main() -> None:
    """Entry point: errors that were raised on purpose become one line, and exit code 1."""
    try:
        cli()
    except OpenDPUError as error:
        click.secho(f"opendpu: {error}", fg="red", err=True)
        sys.exit(1)
