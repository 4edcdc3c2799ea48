"""Programs that are run to their end at set-up: ip(8), ovs-vsctl(8) and the like. Never on a hot path."""

import subprocess

from opendpu.errors import DeadlineError, OpenDPUError

_DEADLINE_S = 30.0


def run(*command: str) -> str:
    """Run a program and return what it printed. Raises OpenDPUError with its own words, or DeadlineError."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_DEADLINE_S)
    except subprocess.TimeoutExpired:
        raise DeadlineError(f"{' '.join(command)} did not end within {_DEADLINE_S:.0f} s") from None
    if done.returncode:
        raise OpenDPUError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def succeeds(*command: str) -> bool:
    """Whether a program ends with 0."""
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=_DEADLINE_S)
    except subprocess.TimeoutExpired:
        raise DeadlineError(f"{' '.join(command)} did not end within {_DEADLINE_S:.0f} s") from None
    return done.returncode == 0
