"""What holds for all tests."""

from hypothesis import settings

# On a machine that others use too, a slow example says nothing; pytest's timeout bounds each test.
settings.register_profile("opendpu", deadline=None)
settings.load_profile("opendpu")
