"""Runs programs under supervisord (http://supervisord.org), the lab's stand-in for systemd.

The data centre has one supervisor and each SoC has its own, so that a SoC can be rebooted alone. A program that dies is
started again at once; one that cannot start is tried again with a growing pause.
"""

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Sequence
from pathlib import Path

from supervisor.xmlrpc import SupervisorTransport

from opendpu.errors import DeadlineError, OpenDPUError
from opendpu.lab.program import Program

_HEADER = """\
[unix_http_server]
file={socket}
chmod=0600

[supervisord]
logfile={log}/supervisord-{name}.log
logfile_maxbytes=1MB
logfile_backups=1
pidfile={pidfile}
childlogdir={log}
directory=/
minfds=4096
umask=077

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
"""

_PROGRAM = """
[program:{name}]
command={command}
directory={directory}
autostart={autostart}
autorestart=true
startsecs=1
startretries=1000000
stopsignal={stop_signal}
stopwaitsecs={stop_wait_s}
stopasgroup=false
killasgroup=true
redirect_stderr=true
stdout_logfile={log}/{name}.log
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=1
"""


def in_netns(netns: str, command: Sequence[str]) -> list[str]:
    """The command that runs `command` in a named network namespace; nsenter execs, so the pid is the program's own."""
    return ["nsenter", f"--net=/run/netns/{netns}", "--", *command] if netns else list(command)


def _quote(word: str) -> str:
    """One argument for supervisord's `command`, which is split as a shell does and expanded as a Python format."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


class Supervisor:
    """One supervisord: its configuration, its life, and its programs' lives."""

    def __init__(self, name: str, *, run: Path, state: Path, netns: str = "") -> None:
        self.name = name
        self.netns = netns
        self.socket = run / f"{name}.sock"
        self.pidfile = run / f"{name}.pid"
        self.config = state / f"{name}.conf"
        self.log = state / "log"

    def configure(self, programs: Sequence[Program]) -> None:
        """Write the configuration; a running supervisor starts what is new in it and leaves the rest alone."""
        self.log.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.socket.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        text = _HEADER.format(socket=self.socket, log=self.log, name=self.name, pidfile=self.pidfile)
        for program in programs:
            # env(1) execs too; supervisord's own environment setting cannot carry every character.
            command = ["env", *(f"{key}={value}" for key, value in program.env.items()), *program.command]
            text += _PROGRAM.format(
                name=program.name,
                command=" ".join(_quote(word) for word in in_netns(program.netns, command)),
                directory=program.directory,
                autostart=str(program.autostart).lower(),
                stop_signal=program.stop_signal,
                stop_wait_s=program.stop_wait_s,
                log=self.log,
            )
        self.config.write_text(text)
        self.config.chmod(0o600)
        if self.running():
            with self._rpc() as rpc:
                added, changed, removed = rpc.reloadConfig()[0]
                for group in [*removed, *changed]:
                    rpc.stopProcessGroup(group)
                    rpc.removeProcessGroup(group)
                for group in [*added, *changed]:
                    rpc.addProcessGroup(group)

    def pid(self) -> int | None:
        """The supervisor's pid if it runs; a pid file left by a killed one does not count."""
        try:
            pid = int(self.pidfile.read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return None
        return pid if str(self.config).encode() in command else None

    def running(self) -> bool:
        return self.pid() is not None

    def start(self, *, timeout: float = 15.0) -> None:
        """Start it if it does not run; return when it answers."""
        if not self.running():
            self.socket.unlink(missing_ok=True)
            self.pidfile.unlink(missing_ok=True)
            command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(self.config)]
            try:
                done = subprocess.run(
                    in_netns(self.netns, command),
                    capture_output=True,
                    text=True,
                    stdin=subprocess.DEVNULL,
                    check=False,
                    timeout=timeout,
                )
            except subprocess.TimeoutExpired:
                raise DeadlineError(f"supervisor {self.name} did not start within {timeout:.0f} s") from None
            if done.returncode:
                raise OpenDPUError(f"supervisor {self.name} did not start: {done.stdout}{done.stderr}")
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, http.client.HTTPException), self._rpc() as rpc:
                rpc.getState()
                return
            time.sleep(0.05)
        raise DeadlineError(f"supervisor {self.name} does not answer on {self.socket} after {timeout:.0f} s")

    def stop(self, *, timeout: float = 60.0) -> None:
        """Stop all programs in good order, then the supervisor itself."""
        pid = self.pid()
        if pid is None:
            return
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + timeout
        while Path(f"/proc/{pid}").exists():
            if time.monotonic() > deadline:
                raise DeadlineError(f"supervisor {self.name} (pid {pid}) still runs {timeout:.0f} s after SIGTERM")
            time.sleep(0.05)

    def start_program(self, name: str) -> None:
        """Start one program, or do nothing when it runs."""
        with self._rpc() as rpc:
            try:
                rpc.startProcess(name, False)
            except xmlrpc.client.Fault as fault:
                if "ALREADY_STARTED" not in fault.faultString:
                    raise OpenDPUError(f"{name} could not be started: {fault.faultString}") from None

    def stop_program(self, name: str) -> None:
        """Stop one program and wait until it is gone."""
        with self._rpc() as rpc:
            try:
                rpc.stopProcess(name, True)
            except xmlrpc.client.Fault as fault:
                if "NOT_RUNNING" not in fault.faultString:
                    raise OpenDPUError(f"{name} could not be stopped: {fault.faultString}") from None

    def programs(self) -> dict[str, tuple[str, int]]:
        """Each program's state (RUNNING, STOPPED, BACKOFF ...) and pid (0: none)."""
        with self._rpc() as rpc:
            return {info["name"]: (info["statename"], info["pid"]) for info in rpc.getAllProcessInfo()}

    @contextlib.contextmanager
    def _rpc(self):  # type: ignore[no-untyped-def]
        transport = SupervisorTransport(None, None, f"unix://{self.socket}")
        try:
            yield xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport).supervisor
        finally:
            transport.close()
