"""Rebuild: the same server on a fresh clone."""

from opendpu.lab.enrol import wait_state
from opendpu.lab.scenario.tenant import Tenant


def test_rebuild_starts_from_a_fresh_clone(tenant: Tenant) -> None:
    name = tenant.lab.servers[2].name
    tenant.deploy(name)
    tenant.wait_active(name)
    guest = tenant.guest(name)
    guest.wait_ssh(timeout=300)
    guest.run("touch /var/lib/of-the-first-life && sync")
    guest.disconnect()
    tenant.shell.run("baremetal", "node", "rebuild", name, "--config-drive", str(tenant.config_drive(name)), json=False)
    wait_state(tenant.shell, name, {"active"}, timeout=600)
    guest.wait_ssh(timeout=300)
    assert guest.run("test -e /var/lib/of-the-first-life || echo fresh").strip() == "fresh"
    tenant.undeploy(name)
