"""Makes a data volume and plugs it into a server, or takes it away again, through the agent on the server's DPU.

    python examples/plug_volume.py 192.0.2.11:7443 data-1 --ca ca.pem --certificate me.pem --key me.key
    python examples/plug_volume.py 192.0.2.11:7443 data-1 --ca ca.pem --certificate me.pem --key me.key --unplug

Both are safe to repeat: every verb is idempotent by the id that the caller chose. The certificate needs the role
`conductor` or `compute`.
"""

import argparse
import sys

from opendpu.agent.client import AgentClient
from opendpu.errors import OpenDPUError

WAIT_S = 60


def plug(agent: AgentClient, volume: str, size_mib: int) -> str:
    """Returns the serial number under which the server's operating system shows the disk."""
    agent.create_volume(volume, size_bytes=size_mib << 20)
    disk = agent.create_disk(volume, volume_id=volume, serial=volume[:20])
    # Create returns when the wish is on the SoC's disk. Ready is told by events; a failure comes with its reason.
    agent.wait_ready(disks=[disk.id], timeout=WAIT_S)
    return disk.spec.serial


def unplug(agent: AgentClient, volume: str) -> None:
    """The volume and its data stay in the pool: plug it into another server."""
    agent.delete_disk(volume)
    agent.wait_deleted(disks=[volume], timeout=WAIT_S)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("agent", help="HOST:PORT")
    parser.add_argument("volume", help="1 to 20 characters of a-z, 0-9 and -")
    parser.add_argument("--size-mib", type=int, default=64)
    parser.add_argument("--unplug", action="store_true")
    for file in ("ca", "certificate", "key"):
        parser.add_argument(f"--{file}", required=True, help="PEM file")
    options = parser.parse_args()
    tls = {"ca": options.ca, "certificate": options.certificate, "key": options.key}
    try:
        with AgentClient(options.agent, **tls) as agent:
            if options.unplug:
                unplug(agent, options.volume)
                print(f"{options.volume} is unplugged")
            else:
                print(f"plugged in with serial number {plug(agent, options.volume, options.size_mib)}")
    except OpenDPUError as error:
        print(f"{error.reason}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
