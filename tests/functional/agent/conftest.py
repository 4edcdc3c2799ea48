"""The agent as a process of its own against real sockets; see tests/unit/agent for its in-memory neighbours."""

import os
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))
from soc import Soc


@pytest.fixture(scope="module")
def soc():
    soc = Soc(Path(tempfile.mkdtemp(prefix=f"ot-{os.getpid()}-", dir="/tmp")))
    try:
        soc.start_neighbours()
        soc.start_agent()
        yield soc
    finally:
        soc.close()
