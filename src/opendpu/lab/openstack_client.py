"""The stock `openstack` client without its start-up time.

One call of the client costs seconds, nearly all of them to import it. So one process in the management namespace
imports it once, with its plug-ins (`baremetal` among them), and forks itself for each command: the command runs the
client's own code from its beginning, in a process of its own, with nothing left over from the one before.
"""

import json as jsonlib
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from opendpu.errors import DeadlineError, OpenDPUError, UnavailableError

_CHILD = "opendpu.lab.openstack_worker"


class OpenStackError(OpenDPUError):
    """The client ended with an error; the message is what it said."""

    reason = "OpenStackClient"


class OpenStackShell:
    """Runs `openstack ...` commands in the network namespace `netns` (empty: this one), one after another.

    `environment` names the cloud (`Central.environment()`). The first command waits for the client to be imported
    (about two seconds); making the shell early hides that.
    """

    def __init__(self, *, netns: str = "", environment: Mapping[str, str], timeout: float = 120.0) -> None:
        self._timeout = timeout
        self._lock = threading.Lock()
        command = [sys.executable, "-m", _CHILD]
        if netns:
            command = ["nsenter", f"--net=/run/netns/{netns}", "--", *command]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONWARNINGS": "ignore", **environment},
        )

    def run(self, *argv: str, json: bool = True) -> Any:
        """What `openstack ARGV -f json` prints, parsed; with `json=False`, for commands that print no object, the text.

        OpenStackError has the client's own words; DeadlineError and UnavailableError end the shell.
        """
        arguments = [*argv, "-f", "json"] if json else list(argv)
        answer = self._ask(arguments)
        if answer["code"]:
            said = (answer["stderr"] or answer["stdout"]).strip()
            raise OpenStackError(f"openstack {' '.join(argv)}: {said or 'ended with status ' + str(answer['code'])}")
        if not json:
            return answer["stdout"]
        try:
            return jsonlib.loads(answer["stdout"])
        except ValueError:
            raise OpenStackError(
                f"openstack {' '.join(arguments)} printed no JSON: {answer['stdout'][:500]!r}"
            ) from None

    def close(self) -> None:
        """End the process, and a command that still runs with it."""
        if self._process.stdin and not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, arguments: list[str]) -> dict[str, Any]:
        with self._lock:
            stdin, stdout = self._process.stdin, self._process.stdout
            assert stdin
            assert stdout
            if self._process.poll() is not None or stdin.closed:
                raise UnavailableError("the OpenStack client's process has ended; make a new OpenStackShell")
            deadline = time.monotonic() + self._timeout
            line = b""
            try:
                stdin.write(jsonlib.dumps(arguments).encode() + b"\n")
                stdin.flush()
                while not line.endswith(b"\n"):
                    ready, _, _ = select.select([stdout], [], [], max(0.0, deadline - time.monotonic()))
                    if not ready:
                        self._process.kill()
                        raise DeadlineError(f"openstack {' '.join(arguments)} has no end after {self._timeout:.0f} s")
                    chunk = os.read(stdout.fileno(), 1 << 16)
                    if not chunk:
                        raise UnavailableError("the OpenStack client's process died during a command")
                    line += chunk
            except BrokenPipeError:
                raise UnavailableError("the OpenStack client's process died before a command") from None
            answer: dict[str, Any] = jsonlib.loads(line)
            return answer
