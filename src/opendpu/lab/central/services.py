"""Neutron and Ironic: their configuration files and the commands that run them.

Neutron's ML2/OVN needs one process here, the API under uWSGI: it writes OVN's northbound database and, through its part
in the hash ring, takes the southbound events that turn a port ACTIVE. Not started, and why: `neutron-rpc-server` (no
agents speak RPC), `neutron-periodic-workers` (they look after such agents), `neutron-ovn-maintenance-worker` (it
repairs what an API call could not write while OVN's database was away, and costs as much memory and start-up as the
API; `neutron-ovn-db-sync-util` does the same on demand).
"""

import shutil
import sys
from importlib import metadata
from pathlib import Path

from opendpu.errors import OpenDPUError
from opendpu.lab.central.database import script
from opendpu.lab.central.rendering import render
from opendpu.lab.files import write_private
from opendpu.lab.program import Program

NEUTRON_URL = "http://127.0.0.1:9696"
IRONIC_URL = "http://127.0.0.1:6385"

_INTERFACES = "ironic.hardware.interfaces."
# Of Ironic's own: what the `dpu` hardware type may be used with. A BMC speaks Redfish or IPMI.
_STOCK_INTERFACES: dict[str, tuple[str, ...]] = {
    "bios": ("no-bios",),
    "boot": (),
    "console": ("no-console",),
    "deploy": (),
    "firmware": ("no-firmware",),
    "inspect": ("no-inspect",),
    "management": ("redfish", "ipmitool"),
    "network": ("noop",),
    "power": ("redfish", "ipmitool"),
    "raid": ("no-raid",),
    "rescue": ("no-rescue",),
    "storage": ("noop",),
    "vendor": ("no-vendor",),
}


def enabled_interfaces() -> str:
    """Ironic's `enabled_*_interfaces`: the stock ones above, and all that this distribution brings as the default.

    IPMI is left out where ipmitool(1) is not installed: one interface that cannot load keeps the conductor
    from starting.
    """
    ours = {
        (point.group.removeprefix(_INTERFACES), point.name)
        for point in metadata.distribution("opendpu").entry_points
        if point.group.startswith(_INTERFACES)
    }
    has_ipmi = shutil.which("ipmitool") is not None
    lines = []
    for kind, stock in _STOCK_INTERFACES.items():
        names = [name for name in stock if name != "ipmitool" or has_ipmi]
        own = sorted(name for point_kind, name in ours if point_kind == kind)
        lines.append(f"enabled_{kind}_interfaces = {','.join([*names, *own])}")
        if own:
            # Ironic prefers `noop` networking where it serves no DHCP itself.
            lines.append(f"default_{kind}_interface = {own[0]}")
    return "\n".join(lines)


class Services:
    """The API services, configured from `state/conf`, in the network namespace `netns`."""

    def __init__(
        self, *, state: Path, run: Path, netns: str, oob_address: str, ovn_nb: str, ovn_sb: str, underlay_mtu: int
    ) -> None:
        self._state = state
        self._run = run
        self._netns = netns
        self._oob_address = oob_address
        self._ovn = (ovn_nb, ovn_sb)
        self._underlay_mtu = underlay_mtu
        self._conf = state / "conf"

    @property
    def clouds_yaml(self) -> Path:
        return self._conf / "clouds.yaml"

    def prepare(self, socket: Path) -> None:
        """Write all configuration; `socket` is MariaDB's."""
        private = (self._state, self._run, self._conf, self._run / "lock")
        for folder in (*private, self._state / "neutron", self._state / "ironic" / "http"):
            folder.mkdir(parents=True, exist_ok=True)
        for folder in private:
            folder.chmod(0o700)  # parents do not get mkdir's mode
        values = {
            "state": self._state,
            "run": self._run,
            "conf": self._conf,
            "socket": socket,
            "netns": self._netns,
            "oob_address": self._oob_address,
            "ovn_nb": self._ovn[0],
            "ovn_sb": self._ovn[1],
            "underlay_mtu": self._underlay_mtu,
            "api_paste": _neutron_api_paste(),
            "venv": sys.prefix,
            "enabled_interfaces": enabled_interfaces(),
        }
        for name in ("neutron.conf", "neutron-policy.yaml", "neutron-uwsgi.ini", "ironic.conf", "clouds.yaml"):
            write_private(self._conf / name, render(name, **values))

    def programs(self) -> list[Program]:
        # Byte code is kept: the services are 2000 modules each, and compiling them takes longer than all the rest.
        env = {"PYTHONDONTWRITEBYTECODE": "", "LC_ALL": "C.UTF-8"}
        commands = {
            "neutron": (script("uwsgi"), "--ini", str(self._conf / "neutron-uwsgi.ini")),
            "ironic": (script("ironic"), "--config-file", str(self._conf / "ironic.conf")),
        }
        return [
            Program(name, command, netns=self._netns, env=env, autostart=False, stop_wait_s=15)
            for name, command in commands.items()
        ]


def _neutron_api_paste() -> Path:
    """Neutron's WSGI pipeline, which its package installs as a data file outside the modules."""
    files = metadata.files("neutron") or ()
    for file in files:
        if file.name == "api-paste.ini":
            return Path(str(file.locate())).resolve()
    raise OpenDPUError("the neutron package has no api-paste.ini: reinstall it with pip")
