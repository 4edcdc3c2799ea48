"""The stages of a deployment with their times, kept in node.driver_internal_info["dpu_timeline"].

Stages, as they follow each other: deploy-requested, volume-cloned, disk-ready, nic-ready, power-on-requested,
power-on-done, first-disk-read, first-packet. Times seen by the card are by the SoC's clock, the others by the
conductor's: keep both on NTP.
"""

from datetime import UTC, datetime
from typing import Any

KEY = "dpu_timeline"


def start(node: Any) -> None:
    node.set_driver_internal_info(KEY, [])
    mark(node, "deploy-requested")


def mark(node: Any, name: str, at: datetime | None = None) -> None:
    """Write a stage's end into the database; `at` is now unless the card saw it itself."""
    ended = (at or datetime.now(UTC)).astimezone(UTC)
    stages = [*node.driver_internal_info.get(KEY, []), {"name": name, "at": ended.isoformat(timespec="milliseconds")}]
    node.set_driver_internal_info(KEY, sorted(stages, key=lambda stage: str(stage["at"])))
    node.save()
