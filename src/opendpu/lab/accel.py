"""Which accelerator QEMU can use here: KVM only where it really boots Linux.

An open /dev/kvm is no proof: nested or patched kernels offer it and then stop a guest in its first instructions. So a
guest is booted, once per kernel and processor model; the verdict is kept in a file.
"""

import json
import os
import platform
import selectors
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Literal

import click

from opendpu.lab.image import build_image

Accel = Literal["kvm", "tcg"]

MARKER = b"READY up"  # what the tiny image says on its console
DEADLINE_S = 20.0
_DEVICE = Path("/dev/kvm")


def choose_accel(cache: Path, tiny_image: Path) -> Accel:
    """The accelerator for this machine, from the cache or by a boot of at most DEADLINE_S seconds."""
    verdicts = cache / "accel.json"
    key = f"{platform.release()} | {_processor()}"
    try:
        known = json.loads(verdicts.read_text())
    except (OSError, ValueError):
        known = {}
    if not isinstance(known, dict):
        known = {}
    if not os.access(_DEVICE, os.R_OK | os.W_OK):
        return "tcg"  # not kept: a module may be loaded, or a device passed in, at any time
    if known.get(key) not in ("kvm", "tcg"):
        known[key] = "kvm" if boots(tiny_image, "kvm") else "tcg"
        _write(verdicts, json.dumps(known, indent=1))
    return "kvm" if known[key] == "kvm" else "tcg"


def boots(image: Path, accel: Accel, deadline_s: float = DEADLINE_S) -> bool:
    """Whether the image says its marker on the serial console within `deadline_s` seconds. Leaves no process."""
    command = [
        "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-M", "q35", "-accel", accel,
        "-cpu", "max", "-m", "256", "-serial", "stdio", "-no-reboot",
        "-drive", f"if=none,id=disk,format=qcow2,snapshot=on,file={image}", "-device", "nvme,drive=disk,serial=probe",
    ]  # fmt: skip
    end = time.monotonic() + deadline_s
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
    ) as guest:
        assert guest.stdout is not None
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(guest.stdout, selectors.EVENT_READ)
                seen = b""
                while (left := end - time.monotonic()) > 0 and selector.select(left):
                    part = os.read(guest.stdout.fileno(), 4096)
                    if not part:
                        return False  # QEMU ended: no such accelerator, or KVM gave up
                    seen += part
                    if MARKER in seen:
                        return True
                return False
        finally:
            guest.kill()


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    Path(file.name).replace(path)


@click.command()
@click.option("--cache", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of the images.")
def main(cache: Path) -> None:
    """Print kvm or tcg: what QEMU can boot Linux with on this machine."""
    image = build_image("tiny", cache, lambda text: click.echo(text, err=True))
    click.echo(choose_accel(cache, image))


if __name__ == "__main__":
    main()
