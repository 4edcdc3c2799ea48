"""A server's board: one QEMU process that lives as long as the server is in the rack.

    python -m opendpu.lab.board --config board.toml

prepares what the board keeps (memory, UEFI variables) and becomes QEMU, so that a supervisor's child *is* the board.
Power is a run state of that process, not the process: off is `prelaunch`, on is `running`. The board has no disk and no
NIC, only PCIe slots; two QMP sockets stand for what is soldered to it: the BMC (power) and the card (the PCIe bus).
"""

import argparse
import os
import re
import resource
import shutil
import signal
import sys
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from uuid import UUID

from opendpu.errors import InvalidArgumentError

QEMU = "/usr/bin/qemu-system-x86_64"
FIRMWARE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
VARSTORE_TEMPLATE = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")

# What a host may fill of our disk with its console, from one power-on (the BMC empties the log) to the next.
CONSOLE_LOG_MAX = 8 << 20  # bytes

_PORTS_PER_SLOT = 8  # functions of one PCI device: root ports are its functions
_MAX_SLOTS = 64
_SOCKET_PATH_MAX = 107  # bytes, sockaddr_un of unix(7) less the closing NUL
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_ACCELERATORS = {
    # A reset keeps translated code. With the default cache of 1 GiB a second boot in the same process drowns in
    # invalidations; 64 MiB costs the first boot nothing.
    "tcg": ("-accel", "tcg,thread=multi,tb-size=64", "-cpu", "max"),
    "kvm": ("-accel", "kvm", "-cpu", "host"),
}


@dataclass(frozen=True, slots=True)
class BoardConfig:
    """The board's configuration file, key by key. Memory is in MiB; `run_dir` takes the sockets, so keep it short."""

    name: str
    uuid: str
    serial: str
    vcpus: int
    memory_mib: int
    slots: int
    run_dir: str
    state_dir: str
    ram_file: str
    accel: str = "tcg"

    def __post_init__(self) -> None:
        for key in ("name", "serial"):
            if _WORD.fullmatch(getattr(self, key)) is None:
                raise InvalidArgumentError(f"board {key} {getattr(self, key)!r}: use letters, digits, _ . and -")
        try:
            UUID(self.uuid)
        except ValueError:
            raise InvalidArgumentError(f"board uuid {self.uuid!r} is none") from None
        if not (self.vcpus >= 1 and self.memory_mib >= 128 and 1 <= self.slots <= _MAX_SLOTS):
            raise InvalidArgumentError(f"a board has a vCPU, 128 MiB and 1 to {_MAX_SLOTS} slots at least")
        if self.accel not in _ACCELERATORS:
            raise InvalidArgumentError(f"board accel {self.accel!r}: use one of {', '.join(_ACCELERATORS)}")
        if len(os.fsencode(self.socket("console.sock"))) > _SOCKET_PATH_MAX:
            raise InvalidArgumentError(f"board run_dir {self.run_dir} is too long for a unix socket's path")

    def socket(self, name: str) -> str:
        return str(Path(self.run_dir, name))

    @property
    def varstore(self) -> Path:
        return Path(self.state_dir, "vars.fd")

    @property
    def console_log(self) -> Path:
        return Path(self.state_dir, "console.log")


def read_config(path: Path) -> BoardConfig:
    """Raises InvalidArgumentError naming the key that is wrong."""
    with path.open("rb") as file:
        table: dict[str, Any] = tomllib.load(file)
    for field in fields(BoardConfig):
        value = table.get(field.name, "tcg" if field.name == "accel" else None)
        if type(value) is not field.type:
            raise InvalidArgumentError(f"{path}: {field.name} is missing or of the wrong type")
    unknown = table.keys() - {field.name for field in fields(BoardConfig)}
    if unknown:
        raise InvalidArgumentError(f"{path}: unknown keys {', '.join(sorted(unknown))}")
    return BoardConfig(**table)


def prepare(config: BoardConfig) -> None:
    """Make what QEMU opens: fresh zeroed memory, and UEFI variables from the template if there are none."""
    for folder in (config.run_dir, config.state_dir):
        Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
    # A board that crashed left its last tenant's memory behind.
    ram = Path(config.ram_file)
    ram.unlink(missing_ok=True)
    fd = os.open(ram, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.truncate(fd, config.memory_mib << 20)
    finally:
        os.close(fd)
    if not config.varstore.exists():
        fresh = config.varstore.with_suffix(".new")
        shutil.copyfile(VARSTORE_TEMPLATE, fresh)
        fresh.chmod(0o600)
        fresh.replace(config.varstore)


def bound_files() -> None:
    """Let QEMU write no file beyond CONSOLE_LOG_MAX; it drops what does not fit into the log and goes on.

    The kernel's limit is the one that no pace of a tenant's output outruns. Memory is not written as a file, and the
    UEFI variables are smaller.
    """
    resource.setrlimit(resource.RLIMIT_FSIZE, (CONSOLE_LOG_MAX, CONSOLE_LOG_MAX))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # exec keeps it: the write fails, and the board lives


def command(config: BoardConfig) -> list[str]:
    """QEMU's arguments."""
    memory = f"memory-backend-file,id=ram,size={config.memory_mib}M,share=on,mem-path={_value(config.ram_file)}"
    identity = f"type=1,manufacturer=OpenDPU,product=Emulated server,serial={config.serial},uuid={config.uuid}"
    # QEMU writes the log itself, so that the guest never waits for a reader that is not there.
    console = f"socket,id=console,server=on,wait=off,path={_value(config.socket('console.sock'))}"
    console += f",logfile={_value(config.console_log)},logappend=on"
    options = [
        *(QEMU, "-name", config.name, "-S", "-nodefaults", "-no-user-config", "-display", "none"),
        # The guest is a tenant's: were it to break out, QEMU can neither start programs nor gain privileges.
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *("-M", "q35,memory-backend=ram,smm=off", *_ACCELERATORS[config.accel], "-smp", str(config.vcpus)),
        # Memory is a file of ours, so that the BMC can clear it at power-off.
        *("-m", str(config.memory_mib), "-object", memory),
        *("-uuid", config.uuid, "-smbios", identity),
        *("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={_value(FIRMWARE)}"),
        *("-drive", f"if=pflash,unit=1,format=raw,file={_value(config.varstore)}"),
        *("-chardev", console, "-serial", "chardev:console"),
        *("-qmp", f"unix:{_value(config.socket('bmc.qmp'))},server=on,wait=off"),
        *("-qmp", f"unix:{_value(config.socket('card.qmp'))},server=on,wait=off"),
        *("-action", "reboot=reset,shutdown=pause,panic=none", "-rtc", "base=utc,clock=host"),
    ]
    for slot in range(config.slots):
        device, function = divmod(slot, _PORTS_PER_SLOT)
        port = f"pcie-root-port,id=slot{slot},bus=pcie.0,addr={2 + device:#x}.{function}"
        multifunction = ",multifunction=on" if function == 0 else ""
        options += ["-device", f"{port},chassis={slot + 1},slot={slot + 1},io-reserve=0{multifunction}"]
    return options


def _value(path: str | Path) -> str:
    return str(path).replace(",", ",,")  # how QEMU quotes a comma in an option


def main() -> None:
    parser = argparse.ArgumentParser(prog="opendpu.lab.board", description="An emulated server's board.")
    parser.add_argument("--config", type=Path, required=True)
    try:
        config = read_config(parser.parse_args().config)
        os.umask(0o077)  # sockets and logs are the owner's
        prepare(config)
    except (InvalidArgumentError, OSError, tomllib.TOMLDecodeError) as error:
        sys.exit(f"board: {error}")
    arguments = command(config)
    bound_files()
    os.execv(arguments[0], arguments)  # noqa: S606  # no shell, fixed list


if __name__ == "__main__":
    main()
