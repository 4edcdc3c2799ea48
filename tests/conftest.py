"""What holds for all tests."""

import os

import pytest
from hypothesis import settings

# On a machine that others use too, a slow example says nothing; pytest's timeout bounds each test. CI tries the same
# examples each time, so that it tells of the change and not of luck; everybody else tries new ones.
settings.register_profile("opendpu", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("opendpu")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI nothing may be skipped: a skip there hides a missing piece."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
