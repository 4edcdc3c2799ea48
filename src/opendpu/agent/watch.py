"""Who wants to hear of changes. A watcher that reads slowly gets the latest state, never a growing queue."""

import asyncio
from collections.abc import AsyncIterator, Collection

from opendpu.errors import UnavailableError


class Hub:
    """Tells watchers which ids changed; a watcher holds at most one entry per id."""

    def __init__(self) -> None:
        self._watchers: set[_Watcher] = set()
        self._closed = False

    def publish(self, id: str) -> None:
        for watcher in self._watchers:
            watcher.add(id)

    def close(self) -> None:
        """End all watches with UnavailableError; those who wait come again when the agent is back."""
        self._closed = True
        for watcher in self._watchers:
            watcher.wake.set()

    async def watch(self, first: Collection[str], only: Collection[str] = ()) -> AsyncIterator[str]:
        """`first`, then each id that changed (of `only`, if that is not empty)."""
        watcher = _Watcher(first, only)
        self._watchers.add(watcher)
        try:
            while not self._closed:
                await watcher.wake.wait()
                watcher.wake.clear()
                while watcher.changed and not self._closed:
                    yield watcher.changed.popitem()[0]
            raise UnavailableError("the agent is stopping; watch again", reason="Stopping")
        finally:
            self._watchers.discard(watcher)


class _Watcher:
    def __init__(self, first: Collection[str], only: Collection[str]) -> None:
        self.only = frozenset(only)
        self.changed: dict[str, None] = dict.fromkeys(reversed(list(first)))
        self.wake = asyncio.Event()
        self.wake.set()

    def add(self, id: str) -> None:
        if not self.only or id in self.only:
            self.changed[id] = None
            self.wake.set()
