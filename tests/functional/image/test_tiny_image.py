"""The tiny image boots with both firmwares, answers TCP, and sees NICs and disks come and go."""

import asyncio
import os
import time
import urllib.request
from pathlib import Path

import pytest

from opendpu.lab import accel

pytestmark = pytest.mark.root


def hardware(server, timeout: float = 60) -> str:
    end = time.monotonic() + timeout
    while True:
        try:
            url = f"http://127.0.0.1:{server.forward[80]}/cgi-bin/hardware"
            with urllib.request.urlopen(url, timeout=10) as answer:
                return answer.read().decode()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


@pytest.mark.parametrize("uefi", [False, True], ids=["bios", "uefi"])
async def test_boots_answers_tcp_and_sees_hot_plug(tiny_image: Path, boot, folder: Path, uefi: bool) -> None:
    server = boot(disk=tiny_image, uefi=uefi, ports=(80,), memory=256)
    print(f"READY after {server.wait_console('READY up', 120):.1f} s")
    server.wait_console("ADDRESS eth0 52:54:00:00:00:01 10.0.2.15", 60)
    seen = hardware(server)
    assert "nic eth0 52:54:00:00:00:01 1500 10.0.2.15/24" in seen
    assert "disk nvme0n1" in seen
    assert "root-disk" in seen

    (folder / "data.raw").write_bytes(os.urandom(1 << 20))
    nic = {"driver": "virtio-net-pci", "id": "nic1", "bus": "rp3", "netdev": "net1", "mac": "52:54:00:00:00:02"}
    data = {"driver": "raw", "node-name": "data", "file": {"driver": "file", "filename": f"{folder}/data.raw"}}
    async with server.qmp() as qmp:
        await qmp.execute("device_add", nic)
        server.wait_console("ADDRESS eth1 52:54:00:00:00:02 10.9.8.", 60)
        assert "nic eth1 52:54:00:00:00:02 1500 10.9.8." in hardware(server)
        await qmp.execute("blockdev-add", data)
        await qmp.execute("device_add", {"driver": "nvme", "bus": "rp2", "drive": "data", "serial": "vol", "id": "vol"})
        end = time.monotonic() + 60
        while " 2048 vol" not in " ".join(hardware(server).split()):
            assert time.monotonic() < end, f"the plugged disk is not seen:\n{hardware(server)}"
            await asyncio.sleep(0.2)


def test_the_probe_tells_booting_from_not_booting(tiny_image: Path, folder: Path) -> None:
    assert accel.boots(tiny_image, "tcg", deadline_s=120)
    begin = time.monotonic()
    assert not accel.boots(tiny_image, "tcg", deadline_s=0.5)  # too short for any boot
    assert not accel.boots(tiny_image, "no-such-accelerator")
    assert time.monotonic() - begin < 5


def test_the_machines_accelerator_is_found_in_time_and_nothing_is_left(tiny_image: Path, folder: Path) -> None:
    begin = time.monotonic()
    chosen = accel.choose_accel(folder, tiny_image)
    assert time.monotonic() - begin < accel.DEADLINE_S + 5
    assert chosen in ("kvm", "tcg")
    running = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [line for line in running if b"qemu" in line and b"serial=probe" in line]
    assert accel.choose_accel(folder, tiny_image) == chosen
