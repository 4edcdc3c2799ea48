"""OVN's control plane in the lab: northbound and southbound databases and ovn-northd (ovn-architecture(7))."""

from dataclasses import dataclass
from pathlib import Path

from opendpu.lab import ovsdb
from opendpu.lab.ovsdb import TlsFiles
from opendpu.lab.program import Program

__all__ = ["OvnCentral", "TlsFiles"]

NB_PORT = 6641
SB_PORT = 6642
ROLE = "ovn-controller"
PROBE_MS = 60000


@dataclass(frozen=True, slots=True)
class OvnCentral:
    """Chassis reach the southbound database at `sb_listen` over mutual TLS only, each in the role that OVN has for them
    (ovn-sb(5), RBAC): a certificate's common name is the one chassis that it may write. Plain TCP is for the control
    plane's own programs (Neutron) on loopback of the same namespace. Without `tls` (tests) chassis use plain TCP too.
    """

    netns: str
    run: Path
    state: Path
    sb_listen: str
    tls: TlsFiles | None = None

    @property
    def nb(self) -> str:
        return f"unix:{self.run / 'nb.sock'}"

    @property
    def sb(self) -> str:
        return f"unix:{self.run / 'sb.sock'}"

    @property
    def sb_remote(self) -> str:
        """What a chassis connects to."""
        return f"{'ssl' if self.tls else 'tcp'}:{self.sb_listen}:{SB_PORT}"

    def prepare(self) -> None:
        """Make what is missing of folders and databases; ovn-northd writes their first rows."""
        self.run.mkdir(parents=True, exist_ok=True, mode=0o700)
        ovsdb.create(self.state / "nb.db", "OVN_Northbound")
        southbound = self.state / "sb.db"
        ovsdb.create(southbound, "OVN_Southbound")
        if self.tls:
            # The role can only be given in the database.
            remote = f"pssl:{SB_PORT}:{self.sb_listen}"
            connection = ["init", "--", f"--inactivity-probe={PROBE_MS}", "set-connection", f"role={ROLE}", remote]
            ovsdb.ctl(("ovn-sbctl",), southbound, self.run / "sb.sock", connection)

    def programs(self) -> list[Program]:
        env = {"OVN_RUNDIR": str(self.run), "OVS_RUNDIR": str(self.run)}
        connections = "db:OVN_Southbound,SB_Global,connections"
        chassis_remote = connections if self.tls else f"ptcp:{SB_PORT}:{self.sb_listen}"
        nb = ovsdb.server(
            self.state / "nb.db", run=self.run, log=self.state,
            remotes=[f"punix:{self.run / 'nb.sock'}", f"ptcp:{NB_PORT}:127.0.0.1"],
        )  # fmt: skip
        sb = ovsdb.server(
            self.state / "sb.db", run=self.run, log=self.state,
            remotes=[f"punix:{self.run / 'sb.sock'}", f"ptcp:{SB_PORT}:127.0.0.1", chassis_remote],
            options=self.tls.options() if self.tls else (),
        )  # fmt: skip
        northd = (
            "ovn-northd", "--no-chdir", "-vconsole:off", f"--log-file={self.state / 'ovn-northd.log'}",
            f"--pidfile={self.run / 'ovn-northd.pid'}", f"--unixctl={self.run / 'ovn-northd.ctl'}",
            f"--ovnnb-db={self.nb}", f"--ovnsb-db={self.sb}",
        )  # fmt: skip
        commands = {"ovn-nb": tuple(nb), "ovn-sb": tuple(sb), "ovn-northd": northd}
        return [Program(name, command, netns=self.netns, env=env) for name, command in commands.items()]
