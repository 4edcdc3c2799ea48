"""The control plane as the lab sees it: prepare, start (by a supervisor), initialise, wait."""

import http.client
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from pyroute2 import netns as pyroute2_netns

from opendpu.errors import DeadlineError
from opendpu.lab.central.database import Database, Progress
from opendpu.lab.central.services import IRONIC_URL, NEUTRON_URL, Services
from opendpu.lab.program import Program

CLOUD = "opendpu"

_PROBE_S = 5.0
_PAUSE_S = 0.1
# What a service must answer with before it counts as ready. Both reach into the database, and Ironic names `dpu` only
# when a conductor has registered that hardware type with all its interfaces.
_PROBES = {
    "neutron": (f"{NEUTRON_URL}/v2.0/networks?limit=1&fields=id", "networks"),
    "ironic": (f"{IRONIC_URL}/v1/drivers", '"dpu"'),
}


class Central:
    """MariaDB, Neutron and Ironic in the network namespace `netns`, on the standard ports of its loopback.

    There is no identity service: whoever is in the namespace is the administrator. `ovn_nb` and `ovn_sb` are the OVN
    databases' addresses there ("tcp:127.0.0.1:6641"). With `cache`, a folder that labs share, the migrated database is
    made once for each set of versions. `log` is the folder where the supervisor writes NAME.log for each program,
    beside `state` unless told; failures quote from there. Unix sockets are in `run`: keep it short (108 bytes in all).
    """

    def __init__(
        self,
        *,
        state: Path,
        run: Path,
        netns: str,
        oob_address: str,
        ovn_nb: str,
        ovn_sb: str,
        underlay_mtu: int = 9000,
        cache: Path | None = None,
        log: Path | None = None,
    ) -> None:
        self._netns = netns
        self._cache = cache
        self._log = log or state.parent / "log"
        self._database = Database(state / "mariadb", run)
        self._services = Services(
            state=state, run=run, netns=netns, oob_address=oob_address, ovn_nb=ovn_nb, ovn_sb=ovn_sb,
            underlay_mtu=underlay_mtu,
        )  # fmt: skip

    def prepare(self, progress: Progress = lambda _: None) -> None:
        """Write the configuration and make the database's files. Nothing need run; idempotent."""
        self._services.prepare(self._database.socket)
        self._database.prepare(cache=self._cache, progress=progress)

    def database_programs(self) -> list[Program]:
        """To be started first; `initialise` needs them."""
        return [Program("mariadb", self._database.command(), netns=self._netns, stop_wait_s=30)]

    def api_programs(self) -> list[Program]:
        """To be started after `initialise` (they do not start by themselves before)."""
        return self._services.programs()

    def initialise(self, progress: Progress) -> None:
        """Once mariadbd was started: create or migrate the schemas, unless they are of the installed versions."""
        self._database.initialise(progress)

    def wait_ready(self, timeout: float) -> None:
        """Wait until Neutron and Ironic answer requests that use their databases.

        DeadlineError names the services that do not, with the end of the log of the first.
        """
        _in_netns(self._netns, lambda: self._wait_ready(time.monotonic() + timeout, timeout))

    def clouds_yaml(self) -> Path:
        return self._services.clouds_yaml

    def environment(self) -> dict[str, str]:
        """For the stock OpenStack clients, run inside the namespace."""
        return {"OS_CLIENT_CONFIG_FILE": str(self.clouds_yaml()), "OS_CLOUD": CLOUD}

    def _wait_ready(self, deadline: float, timeout: float) -> None:
        problems = dict.fromkeys(_PROBES, "not asked yet")
        while problems:
            for name in list(problems):
                problem = _probe(*_PROBES[name])
                if problem:
                    problems[name] = problem
                else:
                    del problems[name]
            if problems and time.monotonic() > deadline:
                said = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
                log = self._log / f"{next(iter(problems))}.log"
                raise DeadlineError(f"not ready after {timeout:.0f} s: {said}. The end of {log}:\n{_tail(log)}")
            if problems:
                # A port that nobody listens on yet has no event to wait for.
                time.sleep(_PAUSE_S)


def _probe(url: str, expected: str) -> str:
    """What is wrong with the answer; empty when it is the expected one."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=_PROBE_S)
    try:
        connection.request("GET", f"{parts.path}?{parts.query}")
        response = connection.getresponse()
        body = response.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return f"{parts.netloc} does not answer ({error or type(error).__name__})"
    finally:
        connection.close()
    if response.status != http.client.OK:
        return f"{url} answers {response.status}: {body[:200]}"
    return "" if expected in body else f"{url} does not list {expected} yet: {body[:200]}"


def _tail(log: Path, lines: int = 20) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return "(there is none: was it started?)"


def _in_netns(name: str, job: Callable[[], None]) -> None:
    """Run `job` in a thread of its own inside the namespace: setns(2) moves the calling thread only."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            pyroute2_netns.setns(name, flags=0)
            job()
        except BaseException as error:  # handed to the caller below
            failures.append(error)

    thread = threading.Thread(target=run, name=f"netns-{name}")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
