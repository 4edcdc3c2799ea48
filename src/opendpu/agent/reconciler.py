"""Runs the steps that bring the host to its desired state: one at a time per key, woken by events.

Level-triggered: a wake-up says "look at this key", never what happened to it, so a thousand of them during a step are
one more step. At rest there is no task and no timer.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

log = logging.getLogger(__name__)

Step = Callable[[str], Awaitable[bool]]
_STOP_S = 3.0


@dataclass(slots=True)
class _Entry:
    task: asyncio.Task[None] | None = None
    dirty: bool = False
    failures: int = 0
    timer: asyncio.TimerHandle | None = None


class Reconciler:
    """A step returns True when there is nothing more to do until an event, False to be tried again later.

    The wait before a further try doubles from `retry_first_s` to `retry_max_s`, with jitter of a quarter so that many
    resources that failed of one cause do not come back at once.
    """

    def __init__(self, *, retry_first_s: float = 0.2, retry_max_s: float = 30.0) -> None:
        self._retry_first_s = retry_first_s
        self._retry_max_s = retry_max_s
        self._steps: dict[str, Step] = {}
        self._entries: dict[tuple[str, str], _Entry] = {}
        self._closing = False

    def register(self, kind: str, step: Step) -> None:
        self._steps[kind] = step

    def wake(self, kind: str, id: str) -> None:
        """Look at this key soon; O(1)."""
        if self._closing:
            return
        entry = self._entries.setdefault((kind, id), _Entry())
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None
        entry.dirty = True
        if entry.task is None:
            entry.task = asyncio.create_task(self._run(kind, id, entry), name=f"reconcile-{kind}-{id}")

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing waits to be tried again."""
        return not self._entries

    async def close(self) -> None:
        """Let running steps end (they may be in the middle of the hardware), but not for ever."""
        self._closing = True
        tasks = []
        for entry in self._entries.values():
            entry.dirty = False
            if entry.timer is not None:
                entry.timer.cancel()
            if entry.task is not None:
                tasks.append(entry.task)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_STOP_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        self._entries.clear()

    async def _run(self, kind: str, id: str, entry: _Entry) -> None:
        settled = True
        while entry.dirty:
            entry.dirty = False
            try:
                settled = await self._steps[kind](id)
            except Exception:
                log.exception("reconciling %s %s failed; trying again", kind, id)
                settled = False
            if not settled and entry.dirty:
                # A step that fails may cause the very event that wakes it: never spin on that.
                await asyncio.sleep(self._retry_first_s)
        entry.task = None
        if settled or self._closing:
            self._entries.pop((kind, id), None)
            return
        delay = min(self._retry_max_s, self._retry_first_s * 2 ** min(entry.failures, 16))
        entry.failures += 1
        delay *= random.uniform(0.75, 1.25)  # noqa: S311 - jitter, no secret
        entry.timer = asyncio.get_running_loop().call_later(delay, self.wake, kind, id)
