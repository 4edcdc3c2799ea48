"""The whole lab, once for all end-to-end tests: two servers for the main job, one for failures."""

import os
from collections.abc import Iterator

import pytest

from opendpu.lab.enrol import enrol
from opendpu.lab.lab import Lab
from opendpu.lab.layout import Layout
from opendpu.lab.openstack_client import OpenStackShell
from opendpu.lab.scenario.main_job import MainJob
from opendpu.lab.scenario.tenant import Tenant

NAME = "e2e"


def say(text: str) -> None:
    print(f"  {text}", flush=True)


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Up from nothing, and gone afterwards without a trace, also after a failure."""
    outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    lab = Lab(Layout.make(NAME), progress=say)
    lab.down(purge=True)
    try:
        lab.up(servers=3, images=("debian", "tiny"))
        yield lab
    finally:
        import pyroute2.netns

        pyroute2.netns.setns(outside)
        os.close(outside)
        lab.down(purge=True)
        assert lab.remains() == []


@pytest.fixture(scope="session")
def shell(lab: Lab) -> Iterator[OpenStackShell]:
    with OpenStackShell(environment=lab.central.environment(), netns=lab.layout.management) as shell:
        enrol(lab, shell)
        yield shell


@pytest.fixture(scope="session")
def tenant(lab: Lab, shell: OpenStackShell) -> Tenant:
    tenant = Tenant(lab, shell)
    tenant.prepare()
    return tenant


@pytest.fixture(scope="session")
def job(lab: Lab, shell: OpenStackShell, tenant: Tenant) -> MainJob:
    """The main job with both servers deployed."""
    job = MainJob(lab, shell, say)
    job.deploy()
    return job
