"""The Debian image in one UEFI boot: host name, SSH key and user data come from the config drive; it hears the power
button.
"""

import asyncio
import json
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]


def test_config_drive_names_the_server_lets_the_key_in_and_runs_the_script(
    debian_image, boot, config_drive, folder: Path
) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"], check=True)
    metadata = {
        "uuid": "6f1c1f0e-6d5f-4e0a-9d8f-000000000001",
        "name": "blue",
        "hostname": "blue",
        "public_keys": {"tester": (folder / "key.pub").read_text()},
    }
    drive = config_drive(
        {
            "openstack/latest/meta_data.json": json.dumps(metadata),
            "openstack/latest/user_data": "#!/bin/sh\nhostname > /root/proof\n",
        }
    )
    server = boot(disk=debian_image, drive=drive, uefi=True, ports=(22,), memory=1024)
    print(f"banner after {server.wait_banner(300):.1f} s")
    ssh = [
        "ssh", "-i", str(folder / "key"), "-p", str(server.forward[22]), "-oBatchMode=yes", "-oLogLevel=ERROR",
        "-oUserKnownHostsFile=/dev/null", "-oStrictHostKeyChecking=no", "debian@127.0.0.1",
    ]  # fmt: skip

    def run(command: str) -> str:
        done = subprocess.run(
            [*ssh, command], check=False, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    end = time.monotonic() + 60
    while subprocess.run([*ssh, "true"], check=False, capture_output=True, stdin=subprocess.DEVNULL).returncode != 0:
        assert time.monotonic() < end, server.console()[-3000:]
        time.sleep(0.5)
    print(f"login after {server.elapsed():.1f} s")
    assert run("hostname") == "blue"
    print(f"cloud-init done after {server.wait_console(' finished at ', 120):.1f} s")
    assert run("sudo cat /root/proof") == "blue"
    assert run("systemctl --failed --no-legend") == ""
    assert "status: done" in run("cloud-init status")

    async def press_power_button() -> None:
        async with server.qmp() as qmp:
            await qmp.execute("system_powerdown")

    asyncio.run(press_power_button())
    assert server.process.wait(90) == 0, server.console()[-3000:]  # this machine's process ends with its power
