"""What hardware type dpu reads from Ironic (driver_info, volume targets, config drives); how it waits for a boot."""

import base64
import contextlib
import gzip
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ironic.common import exception

from opendpu.agent.v1 import agent_pb2 as pb
from opendpu.errors import DeadlineError, UnavailableError
from opendpu.openstack.ironic import agent, bootwait, claim, configdrive, targets, timeline

ISO = bytes(16 * 2048) + b"\x01CD001\x01" + bytes(64)


def packed(content: bytes = ISO) -> str:
    return base64.b64encode(gzip.compress(content)).decode()


@pytest.fixture
def info(tmp_path: Path) -> dict[str, Any]:
    for name in ("ca", "certificate", "key"):
        (tmp_path / name).write_text("PEM")
    files = {f"dpu_agent_{name}": str(tmp_path / name) for name in ("ca", "certificate", "key")}
    return {"dpu_agent_address": "192.0.2.1:7443", **files}


def node(driver_info: dict[str, Any]) -> Any:
    return SimpleNamespace(uuid="u-1", driver_info=driver_info)


def test_driver_info_has_defaults(info: dict[str, Any]) -> None:
    parsed = agent.parse_driver_info(node(info))
    assert (parsed.address, parsed.chassis, parsed.boot_timeout, parsed.ports) == ("192.0.2.1:7443", "", 600, 8)
    parsed = agent.parse_driver_info(
        node({**info, "dpu_agent_address": "[2001:db8::1]:7443", "dpu_boot_timeout": "90"})
    )
    assert (parsed.address, parsed.boot_timeout) == ("[2001:db8::1]:7443", 90)


@pytest.mark.parametrize("name", ["dpu_agent_address", "dpu_agent_ca", "dpu_agent_certificate", "dpu_agent_key"])
def test_missing_parameter_is_named_with_what_it_is(info: dict[str, Any], name: str) -> None:
    del info[name]
    with pytest.raises(exception.MissingParameterValue, match=f"lacks {name}.*driver-info.*{name}: "):
        agent.parse_driver_info(node(info))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dpu_agent_address", "host"), ("dpu_agent_address", "host:0"), ("dpu_agent_address", "host:65536"),
        ("dpu_agent_address", "a b:1"), ("dpu_agent_address", 7443), ("dpu_agent_ca", "relative.pem"),
        ("dpu_agent_key", "/"), ("dpu_chassis", "a b"), ("dpu_chassis", 5), ("dpu_boot_timeout", "0"),
        ("dpu_boot_timeout", True), ("dpu_boot_timeout", 1.5), ("dpu_ports", "many"),
    ],
)  # fmt: skip
def test_invalid_parameter_is_named(info: dict[str, Any], name: str, value: Any) -> None:
    with pytest.raises(exception.InvalidParameterValue, match=f"driver_info/{name} is"):
        agent.parse_driver_info(node({**info, name: value}))


def parse(properties: Any, *, boot_index: int = 0, volume_type: str = "dpu", volume_id: str = "v-1") -> targets.Target:
    return targets.parse(
        "t-1", volume_type=volume_type, volume_id=volume_id, boot_index=boot_index, properties=properties
    )


def test_targets() -> None:
    clone = parse({"image": "debian", "size_gib": "20"})
    assert clone == targets.Target("t-1", "v-1", True, "debian", 20 << 30, False, True)
    assert clone.to_be_made
    blank = parse({"size_gib": 1}, boot_index=1)
    assert (blank.boot, blank.to_be_made, blank.delete_on_termination) == (False, True, False)
    assert not parse({}).to_be_made
    assert not parse({"image": "debian", "delete_on_termination": "false"}).delete_on_termination


@pytest.mark.parametrize(
    ("properties", "more", "says"),
    [
        ({}, {"volume_type": "iscsi"}, "must be 'dpu'"),
        ({}, {"volume_id": ""}, "volume_id of 1 to 36"),
        ({}, {"volume_id": "x" * 37}, "volume_id of 1 to 36"),
        ({"size_gib": 0}, {}, "size_gib"),
        ({"size_gib": -1}, {}, "size_gib"),
        ({"size_gib": "9" * 40}, {}, "size_gib"),
        ({"size_gib": "²"}, {}, "size_gib"),
        ({"image": ["a"]}, {}, "image"),
        ({"imge": "typo"}, {}, "unknown properties"),
        ({"read_only": "perhaps"}, {}, "true or false"),
    ],
)
def test_wrong_target_is_refused(properties: Any, more: dict[str, str], says: str) -> None:
    with pytest.raises(exception.InvalidParameterValue, match=says):
        parse(properties, **more)


def test_two_targets_of_one_volume_are_refused() -> None:
    target = SimpleNamespace(uuid="t", volume_type="dpu", volume_id="v", boot_index=0, properties={})
    with pytest.raises(exception.InvalidParameterValue, match="Two volume targets"):
        targets.targets_of(SimpleNamespace(node=node({}), volume_targets=[target, target]))


def test_config_drive_is_unpacked() -> None:
    assert configdrive.content(SimpleNamespace(instance_info={"configdrive": packed()})) == ISO
    assert configdrive.content(SimpleNamespace(instance_info={})) == b""


@pytest.mark.parametrize(
    ("stored", "says"),
    [
        ("*not base64*", "not base64 of a gzipped image"),
        (base64.b64encode(ISO).decode(), "not base64 of a gzipped image"),
        (base64.b64encode(gzip.compress(ISO)[:-9]).decode(), "cut off"),
        (packed(b"secret"), "no ISO 9660 image"),
        (packed(bytes(configdrive.MAX_BYTES + 1)), "larger than 8 MiB"),
        ("A" * (13 << 20), "larger than 8 MiB"),
    ],
)
def test_broken_config_drive_is_refused(stored: str, says: str) -> None:
    with pytest.raises(exception.InstanceDeployFailure, match=says) as caught:
        configdrive.decode(stored)
    assert "secret" not in str(caught.value)


@given(st.one_of(st.binary(max_size=512), st.binary(max_size=256).map(lambda b: base64.b64encode(gzip.compress(b)))))
def test_any_config_drive_is_an_image_or_a_clear_error(stored: bytes) -> None:
    with contextlib.suppress(exception.InstanceDeployFailure):
        assert configdrive.decode(stored)[0x8001:0x8006] == b"CD001"


class Watched:
    """A client whose watch plays what a card saw; `scripts` holds one list per stream, an exception ends it."""

    def __init__(self, *scripts: list[Any]) -> None:
        self.scripts = list(scripts)

    def watch_server(self, timeout: float) -> Iterator[pb.Server]:
        if not self.scripts:
            raise DeadlineError("time is up")
        for item in self.scripts.pop(0):
            if isinstance(item, Exception):
                raise item
            yield item


def seen(at: int, *, read: int = 0, packet: bool = False) -> pb.Server:
    server = pb.Server(boot_disk_bytes_read=read, first_packet_seen=packet)
    server.powered_on.FromSeconds(at)
    return server


def wait(client: Any, before: pb.Server, *, packet: bool = True) -> pb.Server:
    return bootwait.wait_for_boot(client, before, packet=packet, timeout=5)


def test_boot_counts_only_after_the_new_power_on() -> None:
    stale, fresh = seen(1, read=9, packet=True), seen(2, read=5, packet=True)
    assert wait(Watched([stale, seen(2), seen(2, read=5), fresh]), stale) == fresh
    assert wait(Watched([stale, seen(2, read=5)]), stale, packet=False).boot_disk_bytes_read == 5


def test_boot_outlives_a_restart_of_the_agent() -> None:
    fresh = seen(2, read=5, packet=True)
    assert wait(Watched([seen(2), UnavailableError("gone")], [fresh]), pb.Server()) == fresh


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ([], "saw no power-on.*redfish_address"),
        ([seen(1)], "saw no power-on"),
        ([seen(2)], "No byte was read from the boot disk.*firmware did not find it.*boot loader"),
        ([seen(2, read=77)], "read 77 bytes.*no packet.*console"),
    ],
)
def test_boot_that_fails_says_how_far_it_came(script: list[Any], says: str) -> None:
    with pytest.raises(DeadlineError, match=says):
        wait(Watched(script), seen(1))


class Record(SimpleNamespace):
    """A node's driver_internal_info as Ironic's object keeps it."""

    def set_driver_internal_info(self, key: str, value: Any) -> None:
        self.driver_internal_info = {**self.driver_internal_info, key: value}

    def save(self) -> None:
        self.saves = getattr(self, "saves", 0) + 1


def test_timeline_is_in_order_of_time() -> None:
    record = Record(driver_internal_info={})
    timeline.start(record)
    timeline.mark(record, "last")
    timeline.mark(record, "seen-by-the-card", bootwait.evidence(seen(1))[0][1])
    stages = record.driver_internal_info[timeline.KEY]
    assert [stage["name"] for stage in stages] == ["seen-by-the-card", "deploy-requested", "last"]
    assert stages[0]["at"] == "1970-01-01T00:00:01.000+00:00"


def test_volumes_are_remembered_only_to_be_deleted() -> None:
    record = Record(driver_internal_info={})
    claim.remember_volume(record, parse({"image": "debian"}, volume_id="a"))
    claim.remember_volume(record, parse({"size_gib": 1, "delete_on_termination": True}, volume_id="b"))
    claim.remember_volume(record, parse({"size_gib": 1}, volume_id="c"))
    assert record.driver_internal_info["dpu_volumes"] == {"a": "clone", "b": "blank"}
    assert claim.to_release(record)
    assert not claim.claimed(record)
