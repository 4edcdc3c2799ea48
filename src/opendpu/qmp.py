"""A QMP connection that survives its server.

QMP is QEMU's machine protocol (docs/interop/qmp-spec in the QEMU manual); the wire work is done by the QEMU project's
own `qemu.qmp`. Added here: reconnecting when the server was restarted, a deadline on every command, file descriptors
passed with `getfd`, and OpenDPU's errors.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from qemu.qmp import ExecInterruptedError, ExecuteError, QMPClient, QMPError, Runstate, StateError

from opendpu.errors import DeadlineError, FailedPreconditionError, NotFoundError, UnavailableError

log = logging.getLogger(__name__)

EventHandler = Callable[[str, Mapping[str, Any]], None]
ConnectHandler = Callable[[], Awaitable[None]]

_RETRY_FIRST_S = 0.05
_RETRY_MAX_S = 1.0


class CommandError(FailedPreconditionError):
    """QEMU refused a command; `desc` is its own text."""

    def __init__(self, command: str, desc: str) -> None:
        super().__init__(f"QMP {command}: {desc}", reason="QmpRefused")
        self.command = command
        self.desc = desc


class CommandNotFoundError(NotFoundError, CommandError):
    """QEMU refused a command with class DeviceNotFound."""


class QmpConnection:
    """A QMP session to the server at a unix socket path, kept up until `close`.

    `on_event(name, data)` is called in the event loop for each QMP event. `on_connect()` runs after each (re)connection
    before other callers' commands are let through, so it may rebuild what a restarted server has forgotten;
    it must use `execute_now`. `on_disconnect()` is called when an established session is lost.
    """

    def __init__(
        self,
        path: str,
        *,
        name: str,
        on_event: EventHandler | None = None,
        on_connect: ConnectHandler | None = None,
        on_disconnect: Callable[[], None] | None = None,
        timeout: float = 30.0,
    ) -> None:
        self.path = path
        self.name = name
        self.timeout = timeout
        self._on_event = on_event
        self._on_connect = on_connect
        self._on_disconnect = on_disconnect
        self._client: QMPClient | None = None
        self._up = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._fd_lock = asyncio.Lock()

    @property
    def connected(self) -> bool:
        return self._up.is_set()

    def start(self) -> None:
        """Begin connecting in the background; `execute` waits for the session."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"qmp-{self.name}")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        await self._drop()

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        """Run one command; wait at most `timeout` seconds for the session and for the answer together.

        Raises UnavailableError (no session, or lost on the way), DeadlineError (no answer), CommandError (refused).
        """
        await self.wait_connected()
        return await self.execute_now(command, arguments)

    async def wait_connected(self) -> None:
        """Wait at most `timeout` seconds for the session; UnavailableError."""
        try:
            async with asyncio.timeout(self.timeout):
                await self._up.wait()
        except TimeoutError:
            raise UnavailableError(
                f"{self.name} does not answer on {self.path} (waited {self.timeout:.0f} s); is it running?"
            ) from None

    async def execute_now(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        """Like `execute`, but fail at once when there is no session."""
        client = self._client
        if client is None:
            raise UnavailableError(f"{self.name} is not connected ({self.path})")
        try:
            async with asyncio.timeout(self.timeout):
                return await client.execute(command, arguments)
        except ExecuteError as error:
            kind = CommandNotFoundError if error.error_class == "DeviceNotFound" else CommandError
            raise kind(command, str(error)) from None
        except TimeoutError:
            raise DeadlineError(f"{self.name} gave no answer to {command} within {self.timeout:.0f} s") from None
        except (ExecInterruptedError, StateError, QMPError, OSError) as error:
            raise UnavailableError(f"{self.name} went away during {command}: {error}") from None

    async def send_fd(self, fd: int, fdname: str) -> None:
        """Hand an open file descriptor to the server under a name (QMP `getfd`, SCM_RIGHTS)."""
        async with self._fd_lock:
            client = self._client
            if client is None:
                raise UnavailableError(f"{self.name} is not connected ({self.path})")
            client.send_fd_scm(fd)
            await self.execute_now("getfd", {"fdname": fdname})

    async def _run(self) -> None:
        delay = _RETRY_FIRST_S
        while True:
            client = QMPClient(self.name)
            # A refused connection is the normal case while a server restarts; the library logs it as an error.
            client.logger.setLevel(logging.CRITICAL)
            try:
                await client.connect(self.path)
            except (QMPError, OSError):
                await asyncio.sleep(delay)
                delay = min(delay * 2, _RETRY_MAX_S)
                continue
            self._client = client
            reader = asyncio.create_task(self._read_events(client))
            try:
                if self._on_connect is not None:
                    await self._on_connect()
                self._up.set()
                delay = _RETRY_FIRST_S
                while client.runstate is Runstate.RUNNING:
                    await client.runstate_changed()
            except Exception:
                log.exception("%s: rebuilding the session failed; trying again", self.name)
                await asyncio.sleep(delay)
                delay = min(delay * 2, _RETRY_MAX_S)
            finally:
                was_up = self._up.is_set()
                reader.cancel()
                await self._drop()
                if was_up and self._on_disconnect is not None:
                    self._on_disconnect()

    async def _drop(self) -> None:
        self._up.clear()
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(QMPError, OSError, EOFError):
                await client.disconnect()

    async def _read_events(self, client: QMPClient) -> None:
        # Always read, also without a handler: events that nobody reads pile up in the session's queue.
        async for event in client.events:
            if self._on_event is not None:
                try:
                    self._on_event(str(event["event"]), event.get("data") or {})  # type: ignore[arg-type]
                except Exception:
                    log.exception("%s: handler of event %s failed", self.name, event["event"])
