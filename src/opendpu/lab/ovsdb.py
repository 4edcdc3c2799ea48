"""OVSDB files at set-up: made when missing, and written to before or while their server runs."""

import shlex
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from opendpu.lab import command

SCHEMAS = {
    "Open_vSwitch": Path("/usr/share/openvswitch/vswitch.ovsschema"),
    "OVN_Northbound": Path("/usr/share/ovn/ovn-nb.ovsschema"),
    "OVN_Southbound": Path("/usr/share/ovn/ovn-sb.ovsschema"),
}


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of one end of a mutual TLS connection."""

    ca: Path
    certificate: Path
    key: Path

    def options(self) -> tuple[str, ...]:
        """As all OVS and OVN programs take them (ovs-vswitchd(8), Public Key Infrastructure Options)."""
        return (f"--private-key={self.key}", f"--certificate={self.certificate}", f"--ca-cert={self.ca}")


def create(database: Path, schema: str) -> None:
    """Make an empty database, or leave the one that is there."""
    database.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not database.exists():
        command.run("ovsdb-tool", "create", str(database), str(SCHEMAS[schema]))


def serving(sock: Path) -> bool:
    """Whether a server listens there; the socket file of a killed one does not count."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(sock)) == 0


def ctl(program: Sequence[str], database: Path, sock: Path, arguments: Sequence[str]) -> None:
    """Run one command (with its options) of ovs-vsctl or ovn-sbctl on a database: through the server at `sock`, or else
    a server for just this command.
    """
    if serving(sock):
        command.run(*program, "--timeout=10", f"--db=unix:{sock}", *arguments)
        return
    own = sock.with_name("set-up.sock")
    inner = [*program, "--timeout=10", f"--db=unix:{own}", *arguments]
    command.run(
        "ovsdb-server", str(database), "-vconsole:warn", "--no-chdir", "--unixctl=none",
        f"--remote=punix:{own}", f"--run={shlex.join(inner)}",
    )  # fmt: skip


def server(database: Path, *, run: Path, log: Path, remotes: Sequence[str], options: Sequence[str] = ()) -> list[str]:
    """The command of a server of `database` in the foreground; its socket is RUN/NAME.sock."""
    name = database.stem
    return [
        "ovsdb-server", str(database), "--no-chdir", "-vconsole:off", f"--log-file={log / f'ovsdb-{name}.log'}",
        f"--pidfile={run / f'{name}.pid'}", f"--unixctl={run / f'{name}.ctl'}",
        *(f"--remote={remote}" for remote in remotes), *options,
    ]  # fmt: skip
