"""An OVN chassis in a network namespace of the lab: a server's SoC, or the gateway node."""

import sys
from dataclasses import dataclass
from pathlib import Path

from opendpu.errors import InvalidArgumentError
from opendpu.lab import ovsdb
from opendpu.lab.ovsdb import TlsFiles
from opendpu.lab.program import Program

__all__ = ["Chassis", "TlsFiles"]

INTEGRATION = "br-int"
UNDERLAY = "br-ul"
PROVIDER = "br-ex"

# A new ovs-vswitchd has no flows, and ovn-controller, which has them, waits up to 8 s between two looks for a switch
# that it lost (no setting changes that). A new ovn-controller connects at once. For systemd it is PartOf= and After=;
# here each program's command does its part and then becomes the program ($0 is the first argument, $@ the command).
# supervisord looks after a dead child at once when any program says something, and otherwise a second later: so the
# console gets one word here, and there each connection that comes or goes.
_CONSOLE = ("-vconsole:off", "-vreconnect:console:info", "-vrconn:console:info")
_END_CONTROLLER = (
    'pid=$(cat "$0" 2>/dev/null) && [ "$(cat /proc/$pid/comm 2>/dev/null)" = ovn-controller ] && kill $pid && '
    'sleep 0.1 && echo ovn-controller is to follow the new ovs-vswitchd; exec "$@"'
)
_AWAIT_SWITCH = (
    'left=100; until ovs-ofctl --timeout=1 probe "$0" 2>/dev/null || [ $left = 0 ]; do left=$((left - 1)); sleep 0.05; '
    'done; exec "$@"'
)


@dataclass(frozen=True, slots=True)
class Chassis:
    """`tunnel_address` (address/prefix) sits on br-ul, the bridge that has the netdev `uplink` in it: a userspace
    datapath can only tunnel through a bridge of its own. `run` holds sockets (keep its path short: 108 bytes), `state`
    the database and logs. `keep_underlay`: this chassis has no agent that sets br-ul's address, so run the program that
    does.
    """

    name: str
    netns: str
    run: Path
    state: Path
    tunnel_address: str
    sb_remote: str
    pki: TlsFiles | None = None
    datapath: str = "netdev"
    underlay_mtu: int = 9000
    uplink: str = "up0"
    bridge_mappings: str = f"physnet1:{PROVIDER}"
    keep_underlay: bool = False

    @property
    def ovsdb(self) -> str:
        """The switch's database, for programs on the same SoC."""
        return f"unix:{self.run / 'db.sock'}"

    def prepare(self) -> None:
        """Make the switch's database and write this chassis' configuration into it. Does no harm when repeated, also
        while the chassis runs: ports and other settings stay.
        """
        if self.sb_remote.startswith("ssl:") and self.pki is None:
            raise InvalidArgumentError(f"chassis {self.name} is to use {self.sb_remote} and has no certificate")
        self.run.mkdir(parents=True, exist_ok=True, mode=0o700)
        database = self.state / "conf.db"
        ovsdb.create(database, "Open_vSwitch")
        settings = {
            "system-id": self.name,
            "hostname": self.name,
            "ovn-remote": f'"{self.sb_remote}"',
            "ovn-encap-type": "geneve",
            "ovn-encap-ip": self.tunnel_address.partition("/")[0],
            "ovn-bridge-datapath-type": self.datapath,
            "ovn-openflow-probe-interval": "60",
            "ovn-remote-probe-interval": "60000",
            "ovn-monitor-all": "false",
            "ovn-bridge-mappings": self.bridge_mappings,
        }
        arguments = ["init", "--", "set", "Open_vSwitch", "."]
        arguments += [f"external_ids:{key}={value}" for key, value in settings.items()]
        for bridge in (INTEGRATION, UNDERLAY, PROVIDER):
            arguments += ["--", "--may-exist", "add-br", bridge, "--", "set", "Bridge", bridge]
            arguments += [f"datapath_type={self.datapath}", "other-config:disable-in-band=true"]
        # Nothing passes the integration bridge before OVN says what may.
        arguments += ["--", "set-fail-mode", INTEGRATION, "secure"]
        arguments += ["--", "--may-exist", "add-port", UNDERLAY, self.uplink]
        arguments += ["--", "set", "Interface", UNDERLAY, f"mtu_request={self.underlay_mtu}"]
        ovsdb.ctl(("ovs-vsctl", "--no-wait"), database, self.run / "db.sock", arguments)

    def programs(self) -> list[Program]:
        """In the order in which they should start. Each tells the others' absence by itself and tries again."""
        env = {"OVS_RUNDIR": str(self.run), "OVN_RUNDIR": str(self.run), "OVS_LOGDIR": str(self.state)}
        tls = self.pki.options() if self.pki else ()
        server = ovsdb.server(
            self.state / "conf.db", run=self.run, log=self.state, remotes=[f"punix:{self.run / 'db.sock'}"]
        )
        controller_pid = str(self.run / "ovn-controller.pid")
        vswitchd = (
            "sh", "-c", _END_CONTROLLER, controller_pid,
            "ovs-vswitchd", self.ovsdb, "--no-chdir", *_CONSOLE, f"--log-file={self.state / 'ovs-vswitchd.log'}",
            f"--pidfile={self.run / 'ovs-vswitchd.pid'}", f"--unixctl={self.run / 'ovs-vswitchd.ctl'}",
        )  # fmt: skip
        controller = (
            "sh", "-c", _AWAIT_SWITCH, f"unix:{self.run / f'{INTEGRATION}.mgmt'}",
            "ovn-controller", self.ovsdb, "--no-chdir", *_CONSOLE,
            f"--log-file={self.state / 'ovn-controller.log'}", f"--pidfile={controller_pid}", *tls,
        )  # fmt: skip
        commands = {"ovsdb-server": tuple(server), "ovs-vswitchd": vswitchd, "ovn-controller": controller}
        if self.keep_underlay:
            commands["underlay"] = (
                sys.executable, "-m", "opendpu.network.underlay", "--bridge", UNDERLAY,
                "--address", self.tunnel_address, "--mtu", str(self.underlay_mtu),
            )  # fmt: skip
        return [
            Program(f"{self.name}-{role}", command, netns=self.netns, env=env) for role, command in commands.items()
        ]
