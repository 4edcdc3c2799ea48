"""The QMP side of qemu-storage-daemon: block nodes, exports and jobs.

Reference: "QEMU Storage Daemon QMP Reference Manual". The daemon has nothing in it after a restart, and nothing is
remembered here: what it has is asked of it. What ends later (a job, the removal of an export) is awaited as an event.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from opendpu.errors import (
    DeadlineError,
    FailedPreconditionError,
    OpenDPUError,
    ResourceExhaustedError,
    UnavailableError,
)
from opendpu.qmp import CommandError, QmpConnection

log = logging.getLogger(__name__)

_NEW = "new-"
_JOB_S = 60.0
_EXPORT_GONE_S = 30.0


class StorageDaemon:
    """A session to one storage daemon. `on_change` is called when it went away and again when it is back."""

    def __init__(self, qmp_socket: str, *, on_change: Callable[[], None], timeout: float = 30.0) -> None:
        self._on_change = on_change
        self._closing = False
        self._waiting: dict[tuple[str, str], asyncio.Future[None]] = {}
        self._qmp = QmpConnection(
            qmp_socket,
            name="storage daemon",
            on_event=self._event,
            on_connect=self._connected,
            on_disconnect=self._lost,
            timeout=timeout,
        )

    @property
    def connected(self) -> bool:
        return self._qmp.connected

    @property
    def path(self) -> str:
        return self._qmp.path

    def start(self) -> None:
        self._qmp.start()

    async def close(self) -> None:
        self._closing = True
        await self._qmp.close()

    # ---- what it has ----

    async def exports(self) -> dict[str, bool]:
        """Ids of all exports; the value tells whether it is served (and not on its way out)."""
        return {str(found["id"]): not found["shutting-down"] for found in await self._execute("query-block-exports")}

    async def nodes(self) -> dict[str, bool]:
        """Names of all block nodes; the value tells whether it is read-only."""
        found = await self._execute("query-named-block-nodes", {"flat": True})
        return {str(node["node-name"]): bool(node["ro"]) for node in found}

    # ---- nodes and exports ----

    async def add_node(self, node: Mapping[str, object]) -> None:
        await self._execute("blockdev-add", node)

    async def remove_node(self, name: str) -> None:
        """Close a node, which writes out all it holds."""
        await self._execute("blockdev-del", {"node-name": name})

    async def add_export(self, id: str, *, node: str, name: str, writable: bool, write_through: bool) -> None:
        await self._execute(
            "block-export-add",
            {
                **{"type": "nbd", "id": id, "node-name": node, "name": name},
                **{"writable": writable, "writethrough": write_through},
            },
        )

    async def remove_export(self, id: str) -> None:
        """Disconnect its clients and return when it is gone; one that is leaving already is waited for."""
        async with self._event_of("BLOCK_EXPORT_DELETED", id, _EXPORT_GONE_S):
            served = (await self.exports()).get(id)
            if served is None:
                return
            if served:
                await self._execute("block-export-del", {"id": id, "mode": "hard"})
            await self._waiting["BLOCK_EXPORT_DELETED", id]

    # ---- making an image ----

    async def make_qcow2(self, path: Path, *, size_bytes: int, backing: str = "") -> None:
        """Format an existing empty file; `backing` is the base's name relative to the file, a qcow2 image."""
        name = f"{_NEW}{secrets.token_hex(8)}"
        await self.add_node({"driver": "file", "node-name": name, "filename": str(path)})
        try:
            options: dict[str, object] = {"driver": "qcow2", "file": name, "size": size_bytes}
            if backing:
                options |= {"backing-file": backing, "backing-fmt": "qcow2"}
            await self._run_job(name, options)
        finally:
            # Lost with the daemon, or removed at the next connection: never worth hiding the first error.
            with contextlib.suppress(OpenDPUError):
                await self.remove_node(name)

    async def _run_job(self, id: str, options: Mapping[str, object]) -> None:
        async with self._event_of("JOB_STATUS_CHANGE", id, _JOB_S):
            await self._execute("blockdev-create", {"job-id": id, "options": options})
            await self._waiting["JOB_STATUS_CHANGE", id]
        errors = [job.get("error", "") for job in await self._execute("query-jobs") if job["id"] == id]
        await self._execute("job-dismiss", {"id": id})
        if errors and errors[0]:
            raise refused("blockdev-create", str(errors[0]))

    # ---- the session ----

    @contextlib.asynccontextmanager
    async def _event_of(self, event: str, id: str, seconds: float) -> AsyncIterator[None]:
        """Listen for an event from before its cause; the block has `seconds` in all."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[event, id] = future
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            raise DeadlineError(f"the storage daemon sent no {event} for {id} within {seconds:.0f} s") from None
        finally:
            del self._waiting[event, id]
            future.cancel()

    def _event(self, name: str, data: Mapping[str, Any]) -> None:
        if name == "JOB_STATUS_CHANGE" and data.get("status") != "concluded":
            return
        future = self._waiting.get((name, str(data.get("id"))))
        if future is not None and not future.done():
            future.set_result(None)

    async def _connected(self) -> None:
        # What a killed agent was making: its files are the pool's to clean, the daemon must only let go of them.
        for job in await self._qmp.execute_now("query-jobs"):
            if str(job["id"]).startswith(_NEW) and job["status"] == "concluded":
                await self._qmp.execute_now("job-dismiss", {"id": job["id"]})
        for node in await self._qmp.execute_now("query-named-block-nodes", {"flat": True}):
            if str(node["node-name"]).startswith(_NEW):
                with contextlib.suppress(CommandError):  # a job still works on it: next time
                    await self._qmp.execute_now("blockdev-del", {"node-name": node["node-name"]})
        log.info("connected to the storage daemon at %s", self.path)
        # After the session is open to others' commands, which is when this coroutine has returned.
        asyncio.get_running_loop().call_soon(self._on_change)

    def _lost(self) -> None:
        if not self._closing:
            log.warning("lost the storage daemon at %s", self.path)
        for (event, subject), future in self._waiting.items():
            if not future.done():
                future.set_exception(UnavailableError(f"the storage daemon went away before {event} of {subject}"))
        if not self._closing:
            self._on_change()

    async def _execute(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        try:
            return await self._qmp.execute(command, arguments)
        except CommandError as error:
            raise refused(command, error.desc) from None


def refused(command: str, text: str) -> OpenDPUError:
    """The error that QEMU's words mean (it has no error codes for these: util/error.c, block/file-posix.c)."""
    if "No space left" in text or "Disk quota exceeded" in text:
        return ResourceExhaustedError("no space left in the storage pool; delete volumes or enlarge the disk")
    if "another process using the image" in text or "Failed to get " in text or "Failed to lock byte" in text:
        return FailedPreconditionError(
            "the image is open in another server's storage daemon; delete the disk that uses it there first",
            reason="VolumeInUse",
        )
    return CommandError(command, text)
