"""A deployed server as its tenant sees it: an address in a tenant network, and SSH with the tenant's key."""

import json
import shlex
import subprocess
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from opendpu.errors import DeadlineError, OpenDPUError
from opendpu.lab.supervisor import in_netns
from opendpu.lab.wait import wait_for

_TOOL = "/run/opendpu-guest-tool.py"
USER = "debian"  # the image's; it may become root with sudo(8)


@dataclass(frozen=True)
class Guest:
    """`netns` is the tenant's workstation, from which the tenant network is reached."""

    name: str
    address: str
    netns: str
    key: Path
    sockets: Path  # folder for SSH's shared connections: logins cost seconds on an emulated processor

    def ssh_command(self, *remote: str, options: tuple[str, ...] = ()) -> list[str]:
        """Over the shared connection where there is one (see `connect`), else over one of its own."""
        shared = ("-o", f"ControlPath={self.sockets}/%C")
        return in_netns(
            self.netns,
            ["ssh", "-i", str(self.key), *SSH_OPTIONS, *shared, *options, f"{USER}@{self.address}", *remote],
        )

    def connect(self) -> bool:
        """Log in and keep the connection for the commands to come; False when no login works (yet)."""
        # Its output goes nowhere: the connection lives on in the background and would hold a pipe open.
        command = self.ssh_command(options=("-M", "-N", "-f"))
        none = subprocess.DEVNULL
        return subprocess.run(command, stdin=none, stdout=none, stderr=none, timeout=60, check=False).returncode == 0

    def run(self, command: str, *, timeout: float = 60, stdin: bytes | None = None, via: "Guest | None" = None) -> str:
        """Run a shell command as root; returns what it printed. With `via` the SSH connection itself starts there."""
        as_root = f"sudo -n sh -c {shlex.quote(command)}"
        argv = self._via(via, as_root) if via else self.ssh_command(as_root)
        try:
            done = subprocess.run(argv, input=stdin or b"", capture_output=True, timeout=timeout, check=False)
        except subprocess.TimeoutExpired:
            raise DeadlineError(f"{self.name}: no end of {command!r} within {timeout:.0f} s") from None
        if done.returncode:
            raise OpenDPUError(f"{self.name}: {command!r} failed: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout.decode(errors="replace")

    def _via(self, other: "Guest", command: str) -> list[str]:
        """ssh -J: the TCP connection to this guest's sshd starts at the other guest."""
        # The outer ssh expands percent signs in it, of which %h and %p are meant for it and %C for the inner one.
        proxy = shlex.join(other.ssh_command(options=("-W", "[%h]:%p"))).replace("%C", "%%C")
        return in_netns(
            self.netns,
            [
                "ssh",
                "-i",
                str(self.key),
                *SSH_OPTIONS,
                "-o",
                f"ProxyCommand={proxy}",
                f"{USER}@{self.address}",
                command,
            ],
        )

    def wait_ssh(self, *, timeout: float) -> None:
        """Wait until a login works."""
        self.disconnect()
        wait_for(self.connect, timeout=timeout, what=f"{self.name}: an SSH login at {self.address}")

    def disconnect(self) -> None:
        """End the shared connection: the machine behind the address is about to be another one."""
        subprocess.run(self.ssh_command(options=("-O", "exit")), capture_output=True, check=False)

    def send_tool(self) -> None:
        source = resources.files("opendpu.lab.scenario").joinpath("guest_tool.py").read_bytes()
        self.run(f"cat > {_TOOL}", stdin=source)

    def tool(self, *words: object, timeout: float = 60) -> dict[str, Any]:
        """Run one verb of the guest tool to its end; returns its last line."""
        out = self.run(_line(*words), timeout=timeout)
        result: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
        return result

    def tool_start(self, *words: object) -> "Running":
        """Start a verb and leave it running; for listeners it returns when the port is open."""
        self.tool_stop(str(words[0]))
        process = subprocess.Popen(
            self.ssh_command("sudo", "-n", _line(*words)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running = Running(self, process)
        if words[0] in ("receive", "sink"):
            running.line()
        return running

    def tool_detached(self, *words: object) -> None:
        """Start a verb that outlives the SSH connection (the SoC's network is about to be killed)."""
        self.tool_stop(str(words[0]))
        log = f"/run/opendpu-{words[0]}.log"
        self.run(f"setsid nohup {_line(*words)} >{log} 2>&1 </dev/null & echo started")
        if words[0] == "sink":
            wait_for(
                lambda: "listening" in self.run(f"cat {log}"),
                timeout=20,
                what=f"{self.name}: the listener of {words[1]}",
            )

    def tool_stop(self, verb: str) -> None:
        """End the verb that was started last, if it still runs; closing its SSH connection does not."""
        pid = f"$(cat /run/opendpu-{verb}.pid 2>/dev/null)"
        self.run(f"while kill {pid}; do sleep 0.1; done 2>/dev/null; true", timeout=20)

    def read_json(self, path: str) -> dict[str, Any]:
        result: dict[str, Any] = json.loads(self.run(f"cat {path}"))
        return result

    def boot_id(self) -> str:
        return self.run("cat /proc/sys/kernel/random/boot_id").strip()


SSH_OPTIONS = (
    "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "LogLevel=ERROR",
    "-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=6",
    # A lab's servers are made anew all the time and each makes its own host key.
    "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
)  # fmt: skip


class Running:
    """A guest tool that runs on the far side of an SSH connection."""

    def __init__(self, guest: Guest, process: subprocess.Popen[str]) -> None:
        self.guest = guest
        self._process = process

    def line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        text = self._process.stdout.readline()
        if not text:
            assert self._process.stderr is not None
            raise OpenDPUError(f"{self.guest.name}: the guest tool ended: {self._process.stderr.read().strip()}")
        result: dict[str, Any] = json.loads(text)
        return result

    def result(self, *, timeout: float = 60) -> dict[str, Any]:
        """The last line, when it has ended."""
        try:
            out, err = self._process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.stop()
            raise DeadlineError(f"{self.guest.name}: the guest tool did not end within {timeout:.0f} s") from None
        if not out.strip():
            raise OpenDPUError(f"{self.guest.name}: the guest tool printed nothing: {err.strip()}")
        result: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
        return result

    def stop(self) -> None:
        """Leave it; ending it in the guest is `tool_stop`'s. The shared connection holds the pipes' far ends open."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()


def _line(*words: object) -> str:
    return " ".join(["python3", _TOOL, *(str(word) for word in words)])
