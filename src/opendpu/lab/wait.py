"""Waiting for things of the outside world that send no event."""

import time
from collections.abc import Callable
from typing import Any

from opendpu.errors import DeadlineError


def wait_for(condition: Callable[[], Any], *, timeout: float, what: str, every: float = 0.1) -> Any:
    """Call `condition` until it gives something true and return that; after `timeout` s raise with `what`."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise DeadlineError(f"{what}: not within {timeout:.0f} s")
        time.sleep(every)
    return value
