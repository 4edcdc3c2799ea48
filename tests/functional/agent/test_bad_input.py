"""What can't be done is refused at the caller with the right status and words, and leaves all as it was."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from soc import Soc

from opendpu.agent.client import AgentClient
from opendpu.errors import (
    AccessDeniedError,
    AlreadyExistsError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)

MAC = "52:54:00:00:00:01"


def port(number: int) -> str:
    return f"11111111-1111-4111-8111-{number:012}"


@pytest.fixture(scope="module")
def small() -> Iterator[Soc]:
    """An agent whose database and pool are on file systems of 4 MiB."""
    soc = Soc(Path(tempfile.mkdtemp(prefix=f"ot-{os.getpid()}-", dir="/tmp")))
    mounted = []
    try:
        for name in ("state", "pool"):
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=0700", "ot", soc.folder / name], check=True)
            mounted.append(soc.folder / name)
        soc.start_neighbours()
        soc.start_agent()
        with soc.client() as client:
            client.create_volume("have", size_bytes=1 << 20)
            client.create_disk("have", volume_id="have")
            client.create_interface("have", port_id=port(0), mac=MAC)
        yield soc
    finally:
        soc.end_processes()
        for path in mounted:
            subprocess.run(["umount", path], check=True)
        soc.close()


def everything(soc: Soc, client: AgentClient) -> object:
    """All that a refused call could have changed: the API's lists and the pool's files."""
    return (
        {each.id: each.spec.SerializeToString() for each in client.list_interfaces()},
        {each.id: each.spec.SerializeToString() for each in client.list_disks()},
        {each.id: each.spec.SerializeToString() for each in client.list_volumes()},
        sorted(str(path) for path in (soc.folder / "pool").rglob("*") if path.name != "filler"),
        client.get_server().problems,
    )


@contextlib.contextmanager
def full(folder: Path) -> Iterator[None]:
    filler = folder / "filler"
    try:
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        yield
    finally:
        filler.unlink()


CALLS = {
    "image that is not there": (lambda c: c.create_volume("v", image="none"), NotFoundError, "none"),
    "image that is a path": (lambda c: c.create_volume("v", image="../../etc/passwd"), InvalidArgumentError, "image"),
    "volume without image or size": (lambda c: c.create_volume("v"), InvalidArgumentError, "size"),
    "volume with another size": (lambda c: c.create_volume("have", size_bytes=2 << 20), AlreadyExistsError, "have"),
    "disk of no volume": (lambda c: c.create_disk("d", volume_id="none"), NotFoundError, "none"),
    "disk of a volume that another disk is": (lambda c: c.create_disk("d", volume_id="have"), Exception, "have"),
    "config drive that is none": (lambda c: c.create_disk("d", config_drive=b"x" * 4096), InvalidArgumentError, "ISO"),
    "MAC that is taken": (lambda c: c.create_interface("i", port_id=port(1), mac=MAC), AlreadyExistsError, MAC),
    "port that is taken": (
        lambda c: c.create_interface("i", port_id=port(0), mac=MAC.replace("01", "02")), AlreadyExistsError, port(0),
    ),
    "multicast MAC": (
        lambda c: c.create_interface("i", port_id=port(1), mac="01:00:5e:00:00:01"), InvalidArgumentError, "unicast",
    ),
    "MTU beyond the card's": (
        lambda c: c.create_interface("i", port_id=port(1), mac=MAC.replace("01", "02"), mtu=65000),
        InvalidArgumentError, "mtu",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CALLS)
def test_wrong_call(small, case):
    call, error, says = CALLS[case]
    with small.client() as client:
        before = everything(small, client)
        with pytest.raises(error, match=f"(?i){says}") as caught:
            call(client)
        assert caught.value.reason not in ("", "Internal")
        assert everything(small, client) == before


def test_more_functions_than_the_card_has(small):
    with small.client() as client:
        count = client.get_server().limits.pfs
        for number in range(count):
            client.create_interface(
                f"pf{number}", port_id=port(10 + number), mac=f"52:54:00:00:01:{number:02x}", kind="pf"
            )
        before = everything(small, client)
        with pytest.raises(ResourceExhaustedError, match=f"all {count} PFs") as caught:
            client.create_interface("one-more", port_id=port(99), mac="52:54:00:00:02:00", kind="pf")
        assert caught.value.reason == "NoFreeFunction"
        assert everything(small, client) == before
        client.delete_interface("pf0")
        client.wait_deleted(interfaces=["pf0"], timeout=10)
        client.create_interface("one-more", port_id=port(99), mac="52:54:00:00:02:00", kind="pf")
        ids = ["one-more", *(f"pf{number}" for number in range(1, count))]
        for each in ids:
            client.delete_interface(each)
        client.wait_deleted(interfaces=ids, timeout=10)


@pytest.mark.parametrize("role", ["observer", "mesh", None])
def test_wrong_role(small, role):
    """`mesh` may plug functions, but has no business with disks."""
    with small.client() as conductor, small.client(role) as client:
        before = everything(small, conductor)
        for call in (
            lambda: client.create_volume("v", size_bytes=1 << 20),
            lambda: client.create_disk("d", volume_id="have"),
            lambda: client.delete_disk("have"),
            lambda: client.delete_volume("have"),
        ):
            with pytest.raises(AccessDeniedError, match="role"):
                call()
        assert everything(small, conductor) == before


def test_full_disk_of_the_pool(small):
    with small.client() as client:
        before = everything(small, client)
        with full(small.folder / "pool"):
            with pytest.raises(ResourceExhaustedError, match="no space left"):
                client.create_volume("v", size_bytes=1 << 30)
            assert [each.id for each in client.list_volumes()] == ["have"]
        assert everything(small, client) == before
        client.create_volume("v", size_bytes=1 << 30)
        client.delete_volume("v")


def test_full_disk_of_the_database(small):
    with small.client() as client:
        before = everything(small, client)
        with full(small.folder / "state"):
            drive = bytes(16 * 2048) + b"\x01CD001\x01" + bytes(256 << 10)
            with pytest.raises(ResourceExhaustedError, match=r"(?i)space|full") as caught:
                client.create_disk("d", config_drive=drive)
            assert caught.value.reason == "StoreFull"
            assert client.get_disk("have").id == "have"
        assert everything(small, client) == before
        client.create_disk("d", config_drive=drive)
        small.stop("agent", 9)
        small.start_agent()
    with small.client() as client:
        assert {each.id for each in client.list_disks()} == {"have", "d"}
        client.delete_disk("d")
        client.wait_deleted(disks=["d"], timeout=10)
