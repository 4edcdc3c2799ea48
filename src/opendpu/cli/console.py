"""A terminal on a server's serial console."""

import os
import select
import socket
import sys
import termios
import tty
from pathlib import Path

import click

from opendpu.errors import UnavailableError

_LEAVE = b"\x1d"  # Ctrl-], as telnet(1) has it


def attach(path: Path) -> None:
    """Join this terminal to the console socket until Ctrl-] or the end of input."""
    with socket.socket(socket.AF_UNIX) as console:
        try:
            console.connect(str(path))
        except OSError as error:
            raise UnavailableError(f"no console at {path}: {error}; is the lab up?") from None
        click.echo("connected; leave with Ctrl-]", err=True)
        terminal = sys.stdin.isatty()
        before = termios.tcgetattr(sys.stdin) if terminal else None
        try:
            if terminal:
                tty.setraw(sys.stdin)
            _copy(console)
        finally:
            if before is not None:
                termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
                click.echo(err=True)


def _copy(console: socket.socket) -> None:
    keyboard, screen = sys.stdin.fileno(), sys.stdout.fileno()
    while True:
        ready, _, _ = select.select([keyboard, console], [], [])
        if console in ready:
            data = console.recv(4096)
            if not data:
                return
            os.write(screen, data)
        if keyboard in ready:
            typed = os.read(keyboard, 1024)
            if not typed or _LEAVE in typed:
                return
            console.sendall(typed)
