"""Running the programs of a build: their output goes to a log, whose end is in the error when one fails."""

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from opendpu.errors import FailedPreconditionError, UnavailableError

Progress = Callable[[str], None]

_SBIN = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# In mount and PID namespaces of its own: when the program ends, or this process dies, nothing of it is left.
_UNSHARE = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
_STEP_TIMEOUT_S = 1800.0
_TAIL_BYTES = 1500


def require(programs: Mapping[str, str]) -> None:
    """Raise FailedPreconditionError saying what to install if a program (key) of a package (value) is missing."""
    missing = {package for program, package in programs.items() if shutil.which(program, path=_SBIN) is None}
    if missing:
        raise FailedPreconditionError(f"Building an image needs: apt-get install {' '.join(sorted(missing))}")


def silent(_text: str) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True, slots=True)
class Tools:
    """A build's scratch folder, its log and where its progress is told."""

    work: Path
    progress: Progress

    def run(self, *command: str | Path, timeout: float = _STEP_TIMEOUT_S) -> None:
        """Run a program to its end; UnavailableError with the end of its output when it fails or takes too long."""
        log = self.work / "build.log"
        # A clean environment: the image must not depend on who builds it. Proxies are how the mirror is reached.
        proxies = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
        env = {"PATH": _SBIN, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive", "INITRD": "No", **proxies}
        with log.open("ab") as out:
            try:
                subprocess.run(
                    command, check=True, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=timeout
                )
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                tail = log.read_bytes()[-_TAIL_BYTES:].decode(errors="replace")
                raise UnavailableError(
                    f"Building the image failed: {error}\nThe end of the output:\n{tail}", reason="ImageBuild"
                ) from None

    def run_isolated(self, root: Path, script: str) -> None:
        """Run a shell script inside `root`, with a /proc that goes with it."""
        self.run(*_UNSHARE, f"--root={root}", "--wd=/", "--mount-proc=/proc", "/bin/sh", "-euc", script)

    def bootstrap(self, root: Path, sources: str, *options: str) -> None:
        """debootstrap Debian 12 into `root`, from the first mirror in `sources` or else debootstrap's own default."""
        mirrors = [line.split()[1] for line in sources.splitlines() if line.split()[2] == "bookworm"]
        command = ("debootstrap", "--variant=minbase", "--arch=amd64", *options, "bookworm")
        self.run(*_UNSHARE, *command, root, *mirrors[:1])


def apt_sources(lines: Sequence[str]) -> str:
    """A sources.list from `apt-get indextargets` lines of the form origin|codename|URI|component: Debian 12's own."""
    entries = []
    for line in lines:
        origin, codename, uri, component = line.split("|")
        if origin == "Debian" and codename.split("-")[0] == "bookworm":
            entries.append(f"deb {uri} {codename} {component}\n")
    return "".join(dict.fromkeys(entries))


def host_sources() -> str:
    """What this host's apt uses for Debian 12 (a mirror near it, reachable from it); empty on another system."""
    command = ["apt-get", "indextargets", "--format", "$(ORIGIN)|$(CODENAME)|$(REPO_URI)|$(COMPONENT)"]
    listed = subprocess.run([*command, "Created-By: Packages"], check=False, capture_output=True, text=True, timeout=60)
    return apt_sources(listed.stdout.splitlines()) if listed.returncode == 0 else ""
