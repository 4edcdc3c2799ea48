"""The desired state, on the SoC's disk: SQLite, durable once a call returns.

Write-ahead log with synchronous=FULL: a commit is on the medium before it is acknowledged
(https://sqlite.org/pragma.html#pragma_synchronous). One thread does all the writing, so that the loop never waits for
a disk. The file holds config drives, hence secrets: mode 0600.
"""

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from opendpu.errors import FailedPreconditionError, OpenDPUError, ResourceExhaustedError

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE resource (
    kind       TEXT NOT NULL,
    id         TEXT NOT NULL,
    generation INTEGER NOT NULL,
    spec       BLOB NOT NULL,
    deleting   INTEGER NOT NULL,
    allocation TEXT NOT NULL,
    request_id TEXT NOT NULL,
    deadline_s REAL NOT NULL,
    PRIMARY KEY (kind, id)
) STRICT;
CREATE TABLE note (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
"""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Record:
    """One row. `allocation` is what of the hardware was given to it, before the hardware was touched."""

    kind: str
    id: str
    generation: int
    spec: bytes
    deleting: bool
    allocation: str
    request_id: str
    deadline_s: float


class Store:
    """The file `path`, opened by one agent at a time.

    Raises FailedPreconditionError when the file is damaged (reason StoreDamaged), written by a newer version
    (StoreTooNew) or another agent has it (StoreInUse). Writes raise ResourceExhaustedError when the disk is full;
    nothing of that write is kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = self._take_lock()
        self._db: sqlite3.Connection | None = None
        try:
            # SQLite gives its log and index files the mode of the main file.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            os.chmod(path, 0o600)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=16)
            self._prepare(self._db)
        except BaseException as error:
            self._close()
            if isinstance(error, sqlite3.Error):
                raise self._translate(error) from None
            raise

    def _take_lock(self) -> IO[bytes]:
        lock = self.path.with_name(self.path.name + ".lock").open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise FailedPreconditionError(
                f"{self.path} is in use by another agent; stop that one first", reason="StoreInUse"
            ) from None
        return lock

    def _prepare(self, db: sqlite3.Connection) -> None:
        (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise FailedPreconditionError(
                f"{self.path} was written by a newer agent (schema {version}, this one knows {SCHEMA_VERSION}); "
                "install that version again",
                reason="StoreTooNew",
            )
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute("PRAGMA secure_delete=ON")  # deleted config drives leave no secrets behind
        if version == 0:
            db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")

    def load(self) -> list[Record]:
        """All rows; for the start, when there is no loop to hold up yet."""
        rows = self._query(
            "SELECT kind, id, generation, spec, deleting, allocation, request_id, deadline_s FROM resource"
        )
        return [Record(r[0], r[1], r[2], r[3], bool(r[4]), r[5], r[6], r[7]) for r in rows]

    def read_note(self, key: str) -> str:
        """A small text kept beside the resources; empty if there is none."""
        rows = self._query("SELECT value FROM note WHERE key = ?", key)
        return str(rows[0][0]) if rows else ""

    async def write_note(self, key: str, value: str) -> None:
        await self._in_thread(
            lambda: self._query(
                "INSERT INTO note VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value", key, value
            )
        )

    async def add(self, record: Record) -> None:
        r = record
        await self._in_thread(
            lambda: self._query(
                "INSERT INTO resource VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                *(r.kind, r.id, r.generation, r.spec, int(r.deleting), r.allocation, r.request_id, r.deadline_s),
            )
        )

    async def mark_deleting(self, kind: str, id: str, generation: int, request_id: str) -> None:
        await self._in_thread(
            lambda: self._query(
                "UPDATE resource SET deleting = 1, generation = ?, request_id = ? WHERE kind = ? AND id = ?",
                *(generation, request_id, kind, id),
            )
        )

    async def remove(self, kind: str, id: str) -> None:
        await self._in_thread(lambda: self._query("DELETE FROM resource WHERE kind = ? AND id = ?", kind, id))

    async def spec(self, kind: str, id: str) -> bytes:
        """The specification's bytes with its secrets, which are not held in memory."""
        rows = await self._in_thread(
            lambda: self._query("SELECT spec FROM resource WHERE kind = ? AND id = ?", kind, id)
        )
        return bytes(rows[0][0]) if rows else b""

    async def close(self) -> None:
        """Finish what was begun and close the file."""
        await self._in_thread(self._close)
        self._thread.shutdown(wait=False)

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None
        self._lock.close()

    def _query(self, statement: str, *values: object) -> list[Any]:
        if self._db is None:
            raise FailedPreconditionError("the agent is stopping", reason="Stopping")
        try:
            return self._db.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._translate(error) from None

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _translate(self, error: sqlite3.Error) -> OpenDPUError:
        code = getattr(error, "sqlite_errorcode", None) or 0
        # The low byte is the primary code (https://sqlite.org/rescode.html). With no room left for the index of the
        # log SQLite reports an I/O error, hence both.
        if code & 0xFF == sqlite3.SQLITE_FULL or code in (sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE):
            return ResourceExhaustedError(
                f"no room left on the SoC's disk for {self.path.name}; nothing was changed, free space and try again",
                reason="StoreFull",
            )
        return FailedPreconditionError(
            f"{self.path} is damaged or can't be used ({error}). Restore it, or move it away: the agent then starts "
            "empty and takes all NICs and disks from the host",
            reason="StoreDamaged",
        )
