"""The card's hot-plug slots, which NICs and disks share."""

import asyncio
from collections.abc import Callable

from opendpu.card.card import CardLimits
from opendpu.errors import ResourceExhaustedError


class Slots:
    """Counts what was promised. `lock` serialises admissions, so that two calls can't be promised the last slot."""

    def __init__(self, limits: CardLimits) -> None:
        self.limits = limits
        self.lock = asyncio.Lock()
        self._users: list[Callable[[], int]] = []

    def add_user(self, count: Callable[[], int]) -> None:
        """`count()` is how many slots, the boot disk's aside, that user has promised."""
        self._users.append(count)

    def require(self) -> None:
        """Raises ResourceExhaustedError when no slot is left; one more is kept for the boot disk."""
        total = self.limits.slots - 1
        if sum(count() for count in self._users) >= total:
            raise ResourceExhaustedError(
                f"all {total} hot-plug slots for NICs and data disks are taken; delete one first", reason="NoFreeSlot"
            )
