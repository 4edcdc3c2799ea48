"""The driver in a real Ironic: enroll, inspect, deploy, plug, undeploy; and each way a deployment fails."""

import base64
import gzip
import time
from datetime import datetime
from typing import Any

import pytest

ISO = bytes(16 * 2048) + b"\x01CD001\x01" + b"secret-of-the-tenant" + bytes(4096)


def drive(content: bytes = ISO) -> str:
    return base64.b64encode(gzip.compress(content)).decode()


def attach(ironic: Any, neutron: Any, node: str, mac: str) -> str:
    vif = neutron.port(mac)
    ironic("POST", f"nodes/{node}/vifs", {"id": vif})
    return str(vif)


def seconds_to_power_on(shown: dict[str, Any]) -> float:
    stages = {stage["name"]: stage["at"] for stage in shown["driver_internal_info"]["dpu_timeline"]}
    begin, end = (datetime.fromisoformat(stages[name]) for name in ("deploy-requested", "power-on-requested"))
    return (end - begin).total_seconds()


def assert_nothing_left(ironic: Any, agent: Any, neutron: Any, node: str, bmc: Any) -> None:
    assert not agent.disks
    assert not agent.interfaces
    assert not agent.volumes
    assert agent.server.power == 2  # POWER_OFF
    assert all(port["binding:host_id"] == "" for port in neutron.ports.values())
    internal = ironic("GET", f"nodes/{node}")["driver_internal_info"]
    assert "dpu_claim" not in internal
    assert not internal.get("dpu_volumes")


def undeploy(ironic: Any, node: str) -> None:
    ironic.provision(node, "deleted", "available")


def test_inspection_describes_card_and_makes_ports(ironic: Any, node: str) -> None:
    shown = ironic("GET", f"nodes/{node}")
    assert shown["properties"]["memory_mb"] == 4096
    assert shown["properties"]["cpus"] == 2
    assert shown["properties"]["cpu_arch"] == "x86_64"
    assert shown["properties"]["capabilities"] == "boot_mode:uefi"
    assert shown["extra"]["dpu"]["serial"] == "T-1"
    assert shown["extra"]["dpu"]["limits"]["slots"] == 16
    ports = ironic("GET", f"ports?node={node}")["ports"]
    assert len({port["address"] for port in ports}) == 8
    assert all(int(port["address"][:2], 16) & 3 == 2 for port in ports)


def test_deploy_and_undeploy(ironic: Any, agent: Any, neutron: Any, bmc: Any, node: str) -> None:
    vif = attach(ironic, neutron, node, "fa:16:3e:00:00:01")
    shown = ironic.provision(node, "active", "active", configdrive=drive())
    # About 2 s on an idle machine, of which Ironic's hashing of the BMC's password is most; generous for a loaded one.
    assert seconds_to_power_on(shown) < 20
    names = [stage["name"] for stage in shown["driver_internal_info"]["dpu_timeline"]]
    assert names[0] == "deploy-requested"
    assert set(names) == {
        "deploy-requested", "volume-cloned", "disk-ready", "nic-ready", "power-on-requested", "power-on-done",
        "first-disk-read", "first-packet",
    }  # fmt: skip
    assert agent.volumes["system-1"].spec.image == "debian"
    assert agent.volumes["system-1"].spec.size_bytes == 4 << 30
    (boot,) = [disk for disk in agent.disks.values() if disk.spec.boot]
    assert boot.spec.volume_id == "system-1"
    assert agent.config_drives == [ISO]
    assert len(agent.disks) == 2
    assert agent.interfaces[vif].spec.mac == "fa:16:3e:00:00:01"
    assert agent.interfaces[vif].spec.mtu == 1442
    assert neutron.ports[vif]["binding:vif_type"] == "ovs"
    # One boot, and the devices were there before it.
    assert agent.calls.count("power-on") == 1
    assert agent.calls.index("create-disk") < agent.calls.index("power-on")
    assert b"secret-of-the-tenant" not in ironic.log.read_bytes()
    assert drive()[:60] not in ironic.log.read_text().replace("'configdrive': '***'", "")

    before = bmc.bios_resets
    undeploy(ironic, node)
    assert_nothing_left(ironic, agent, neutron, node, bmc)
    assert neutron.ports[vif]["mac_address"] == "fa:16:3e:00:00:01"
    assert ironic("GET", f"nodes/{node}/vifs")["vifs"] == []
    assert ironic("GET", f"volume/targets?node={node}")["targets"] == []
    assert bmc.bios_resets == before + 1


def test_active_node_is_plugged_and_keeps_its_disks_over_power(
    ironic: Any, agent: Any, neutron: Any, bmc: Any, node: str
) -> None:
    attach(ironic, neutron, node, "fa:16:3e:00:01:01")
    ironic.provision(node, "active", "active")
    disks = set(agent.disks)

    second = attach(ironic, neutron, node, "fa:16:3e:00:01:02")
    assert agent.interfaces[second].spec.mac == "fa:16:3e:00:01:02"
    assert neutron.ports[second]["binding:host_id"] == "dpu-chassis-1"
    ironic("DELETE", f"nodes/{node}/vifs/{second}")
    assert second not in agent.interfaces
    assert neutron.ports[second]["binding:host_id"] == ""

    plug = {"volume_id": "data-1", "size_gib": 1}
    target = ironic("POST", f"nodes/{node}/vendor_passthru?method=attach_volume", plug)["volume_target"]
    assert agent.disks[target].spec.volume_id == "data-1"
    again = ironic("POST", f"nodes/{node}/vendor_passthru?method=attach_volume", plug)["volume_target"]
    assert again == target
    ironic("POST", f"nodes/{node}/vendor_passthru?method=detach_volume", {"volume_id": "data-1"})
    assert set(agent.disks) == disks
    assert "data-1" in agent.volumes

    for power in ("power off", "power on", "rebooting"):
        ironic("PUT", f"nodes/{node}/states/power", {"target": power})
        wanted = "power off" if power == "power off" else "power on"
        deadline = time.monotonic() + 30
        while (shown := ironic("GET", f"nodes/{node}"))["power_state"] != wanted or shown["target_power_state"]:
            assert time.monotonic() < deadline, shown["last_error"]
            time.sleep(0.1)
        assert set(agent.disks) == disks

    undeploy(ironic, node)
    assert set(agent.volumes) == {"data-1"}
    agent.volumes.clear()
    assert_nothing_left(ironic, agent, neutron, node, bmc)


def test_live_attachment_that_fails_leaves_nothing_and_can_be_retried(
    ironic: Any, agent: Any, neutron: Any, node: str
) -> None:
    attach(ironic, neutron, node, "fa:16:3e:00:02:01")
    ironic.provision(node, "active", "active")
    agent.functions = 1
    vif = neutron.port("fa:16:3e:00:02:02")
    refused = ironic("POST", f"nodes/{node}/vifs", {"id": vif}, ok=False)
    assert refused.status_code >= 400
    assert "no free VF" in refused.text
    assert neutron.ports[vif]["binding:host_id"] == ""
    assert [entry["id"] for entry in ironic("GET", f"nodes/{node}/vifs")["vifs"]] != [vif]
    agent.functions = 8
    ironic("POST", f"nodes/{node}/vifs", {"id": vif})
    assert vif in agent.interfaces

    missing = {"volume_id": "data-9", "image": "no-such-image"}
    refused = ironic("POST", f"nodes/{node}/vendor_passthru?method=attach_volume", missing, ok=False)
    assert "no image 'no-such-image'" in refused.text
    assert len(ironic("GET", f"volume/targets?node={node}")["targets"]) == 1
    assert len(agent.disks) == 1
    undeploy(ironic, node)


def test_rebuild_boots_a_fresh_clone(ironic: Any, agent: Any, neutron: Any, bmc: Any, node: str) -> None:
    attach(ironic, neutron, node, "fa:16:3e:00:03:01")
    ironic.provision(node, "active", "active")
    agent.calls.clear()
    # Without these two, which the driver notes at deployment, Ironic 39 answers a rebuild with an UnboundLocalError.
    noted = ironic("GET", f"nodes/{node}")["instance_info"]
    assert (noted["image_source"], noted["image_type"]) == ("debian", "whole-disk")
    ironic.provision(node, "rebuild", "active")
    steps = ("power-off", "delete-disk", "delete-volume", "create-volume", "create-disk", "power-on")
    assert [agent.calls.index(step) for step in steps] == sorted(agent.calls.index(step) for step in steps)
    undeploy(ironic, node)
    assert_nothing_left(ironic, agent, neutron, node, bmc)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda agent: agent.images.clear(), "no image 'debian'"),
        (lambda agent: setattr(agent, "functions", 0), "no free VF"),
        (lambda agent: setattr(agent, "boots", "nothing"), "firmware did not find it"),
        (lambda agent: setattr(agent, "boots", "disk"), "sent no packet"),
        (lambda agent: setattr(agent.server, "chassis", "other"), "no live OVN chassis has the host name 'other'"),
    ],
    ids=["image missing", "no free function", "nothing boots", "no network", "not bound"],
)
def test_failed_deployment_leaves_a_clean_node(
    ironic: Any, agent: Any, neutron: Any, bmc: Any, node: str, spoil: Any, says: str
) -> None:
    attach(ironic, neutron, node, "fa:16:3e:00:04:01")
    spoil(agent)
    shown = ironic.provision(node, "active", "deploy failed", configdrive=drive())
    assert says in shown["last_error"]
    assert_nothing_left(ironic, agent, neutron, node, bmc)
    undeploy(ironic, node)


def test_unreachable_agent_fails_the_deployment_and_is_named(
    ironic: Any, agent: Any, neutron: Any, bmc: Any, node: str
) -> None:
    attach(ironic, neutron, node, "fa:16:3e:00:05:01")
    agent.stop()
    try:
        shown = ironic.provision(node, "active", "deploy failed")
    finally:
        agent.start()
    assert f"127.0.0.1:{agent.port}" in shown["last_error"]
    assert_nothing_left(ironic, agent, neutron, node, bmc)
    # It is the agent alone that was missing: the next try succeeds.
    ironic.provision(node, "active", "active")
    undeploy(ironic, node)


def test_agent_lost_during_undeployment_is_released_by_the_next(
    ironic: Any, agent: Any, neutron: Any, bmc: Any, node: str
) -> None:
    vif = attach(ironic, neutron, node, "fa:16:3e:00:06:01")
    ironic.provision(node, "active", "active")
    agent.stop()
    try:
        shown = ironic.provision(node, "deleted", "error")
    finally:
        agent.start()
    assert "it does what is left" in shown["last_error"]
    assert agent.server.power == 2
    assert neutron.ports[vif]["binding:host_id"] == ""
    assert agent.disks
    undeploy(ironic, node)
    assert_nothing_left(ironic, agent, neutron, node, bmc)


def test_card_in_use_is_refused_and_left_alone(ironic: Any, agent: Any, neutron: Any, node: str) -> None:
    from opendpu.agent.v1 import agent_pb2 as pb

    agent.disks["another-nodes"] = pb.Disk(id="another-nodes", spec=pb.DiskSpec(volume_id="x"), status=agent._ready())
    shown = ironic.provision(node, "active", "deploy failed")
    assert "disk another-nodes" in shown["last_error"]
    failed = ironic.provision(node, "deleted", "clean failed")
    assert "disk another-nodes" in failed["last_error"]
    assert "another-nodes" in agent.disks
    # Ironic puts a node whose cleaning failed into maintenance.
    ironic("DELETE", f"nodes/{node}/maintenance")
    ironic.provision(node, "manage", "manageable")
    ironic.provision(
        node, "clean", "manageable", clean_steps=[{"interface": "deploy", "step": "release_card"}], disable_ramdisk=True
    )
    assert not agent.disks
    ironic.provision(node, "provide", "available")


@pytest.mark.parametrize(
    ("info", "says"),
    [
        ({"dpu_agent_address": None}, "lacks dpu_agent_address"),
        ({"dpu_agent_address": "no-port"}, "must be host:port"),
        ({"dpu_agent_key": "/nonexistent.key"}, "must be the absolute path of a PEM file"),
        ({"dpu_boot_timeout": "soon"}, "must be a whole number from 1 to 86400"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_is_done(
    ironic: Any, agent: Any, node: str, info: dict[str, str | None], says: str
) -> None:
    for name, value in info.items():
        patch = {"path": f"/driver_info/{name}", "op": "remove" if value is None else "replace"}
        ironic("PATCH", f"nodes/{node}", [patch if value is None else {**patch, "value": value}])
    refused = ironic("PUT", f"nodes/{node}/states/provision", {"target": "active"}, ok=False)
    assert refused.status_code >= 400
    assert says in refused.text
    assert not agent.disks


def test_broken_config_drive_fails_without_telling_its_content(
    ironic: Any, agent: Any, neutron: Any, bmc: Any, node: str
) -> None:
    broken = drive(b"not an image but a-password")
    shown = ironic.provision(node, "active", "deploy failed", configdrive=broken)
    assert "no ISO 9660 image" in shown["last_error"]
    assert "a-password" not in shown["last_error"]
    assert_nothing_left(ironic, agent, neutron, node, bmc)
    undeploy(ironic, node)
