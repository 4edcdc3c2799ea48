"""The switch's database as asyncio sees it: ovsdbapp's connection thread on one side, the event loop on the other.

The thread keeps the in-memory copy of the database (RFC 7047, and ovs.db.idl); after each change it takes what matters
out of the copy and hands that to the loop, so that the loop never waits for the thread's lock. Transactions run in the
thread, where they see the copy as it is.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from ovs.db.idl import Idl
from ovsdbapp.backend.ovs_idl import connection, idlutils
from ovsdbapp.backend.ovs_idl.command import BaseCommand
from ovsdbapp.backend.ovs_idl.transaction import Transaction
from ovsdbapp.exceptions import TimeoutException

from opendpu.errors import DeadlineError, OpenDPUError, UnavailableError

log = logging.getLogger(__name__)

_COLUMNS = {
    "Open_vSwitch": ["bridges", "external_ids", "next_cfg", "cur_cfg"],
    "Bridge": ["name", "ports", "fail_mode"],
    "Port": ["name", "interfaces"],
    "Interface": ["name", "external_ids", "error", "ifindex", "mtu", "mtu_request", "ofport", "statistics"],
}
_RETRY_S = 0.2

View = TypeVar("View")


class _Copy(connection.OvsdbIdl):  # type: ignore[misc]
    """`changed(online)` is called in the connection's thread after each change and when the server goes or returns."""

    def __init__(self, remote: str, schema: Any, changed: Callable[[bool], None]) -> None:
        super().__init__(remote, schema)
        self._changed = changed
        self._online = False
        # The library doubles its pause up to 8 s; a database on the same machine is worth a look each second.
        self._session.reconnect.set_backoff(1000, 1000)

    def run(self) -> bool:
        changed = bool(super().run())
        online = self._session.is_connected() and self.state == Idl.IDL_S_MONITORING
        if online != self._online or (changed and online):
            self._online = online
            self._changed(online)
        return changed


class SwitchDatabase(Generic[View]):
    """`view(tables)` makes, in the connection's thread, an immutable value from the copy's tables. `on_view(value)`
    gets each new one in the event loop; `on_view(None)` says that the server went away.
    """

    def __init__(
        self, remote: str, *, view: Callable[[Any], View], on_view: Callable[[View | None], None], timeout: float = 10.0
    ) -> None:
        self.remote = remote
        self.timeout = timeout
        self.online = False
        self._view = view
        self._on_view = on_view
        self._connection: connection.Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    # What ovsdbapp's transactions and commands expect of the object they call `api`.

    @property
    def idl(self) -> Any:
        assert self._connection is not None
        return self._connection.idl

    @property
    def tables(self) -> Any:
        return self.idl.tables

    async def start(self) -> None:
        """Begin connecting in the background; reconnects until `close`."""
        if self._task is None:
            self._loop = asyncio.get_running_loop()
            self._task = asyncio.create_task(self._connect(), name="ovsdb-connect")

    async def close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        opened, self._connection = self._connection, None
        if opened is not None:
            await asyncio.to_thread(opened.stop, self.timeout)
        self.online = False

    async def commit(self, command: BaseCommand) -> Any:
        """Run one command as one transaction; returns its result when the server has written it.

        Raises UnavailableError (no server, or it refused), DeadlineError (no answer), or what the command raised.
        """
        if self._connection is None or not self.online:
            raise UnavailableError(f"ovsdb-server does not answer on {self.remote}; is it running?")
        transaction = Transaction(self, self._connection, self.timeout, check_error=True, log_errors=False)
        transaction.add(command)
        try:
            (result,) = await asyncio.to_thread(transaction.commit)
        except OpenDPUError:
            raise
        except TimeoutException:
            raise DeadlineError(f"ovsdb-server on {self.remote} gave no answer within {self.timeout:.0f} s") from None
        except RuntimeError as error:
            raise UnavailableError(f"ovsdb-server on {self.remote} refused: {error}") from None
        return result

    async def _connect(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self._open)
            except Exception as error:  # the library raises a bare Exception when nobody listens
                log.debug("ovsdb-server on %s: %s", self.remote, error)
                await asyncio.sleep(_RETRY_S)
            else:
                return

    def _open(self) -> None:
        """In a thread of its own: the library fetches the schema and the first copy by blocking."""
        schema = idlutils.get_schema_helper(self.remote, "Open_vSwitch")
        for table, columns in _COLUMNS.items():
            schema.register_columns(table, columns)
        self._connection = opened = connection.Connection(_Copy(self.remote, schema, self._changed), self.timeout)
        opened.start()
        if self._task is None:  # closed meanwhile
            opened.stop(self.timeout)

    def _changed(self, online: bool) -> None:
        assert self._loop is not None
        view = self._view(self.tables) if online else None
        # The loop may be closed already when the program ends.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._deliver, view)

    def _deliver(self, view: View | None) -> None:
        if self._task is not None:
            self.online = view is not None
            self._on_view(view)
