"""`python -m opendpu.lab.image build {debian,tiny} --cache DIR`."""

import sys
import time
from pathlib import Path

import click

from opendpu.errors import OpenDPUError
from opendpu.lab.image import KINDS, Kind, build_image


@click.group()
def main() -> None:
    """Disk images of the lab's servers."""


@main.command("build")
@click.argument("kind", type=click.Choice(KINDS))
@click.option("--cache", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of the images.")
def build_command(kind: Kind, cache: Path) -> None:
    """Build the image unless the cache has it; its path is the one line on standard output.

    \b
    Example: python -m opendpu.lab.image build debian --cache /var/cache/opendpu/images
    """
    begin = time.monotonic()

    def progress(text: str) -> None:
        click.echo(f"[{time.monotonic() - begin:6.1f} s] {kind} image: {text}", err=True)

    try:
        click.echo(build_image(kind, cache, progress))
    except OpenDPUError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
