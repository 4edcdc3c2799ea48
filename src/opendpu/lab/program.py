"""A program of the lab: what a supervisor needs to know to run it."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Program:
    """One supervised process in the foreground (never a daemon that forks away: its pid must stay the child's)."""

    name: str
    command: tuple[str, ...]
    netns: str = ""  # name of the network namespace (ip-netns(8)); empty: the one of the supervisor
    env: Mapping[str, str] = field(default_factory=dict)
    directory: str = "/"
    autostart: bool = True
    stop_signal: str = "TERM"
    stop_wait_s: int = 10
