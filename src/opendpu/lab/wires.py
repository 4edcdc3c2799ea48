"""The lab's cables: network namespaces, and veth pairs plugged into two switches.

    fabric   a namespace with two Linux bridges: `ul` (underlay, tunnels, jumbo frames) and `oob` (out of band: SoC
             management, BMC, control plane). Linux bridges stand in for the racks' physical switches; nothing ever
             configures them after this.

Everything here is idempotent and done with ip(8): it runs at set-up, never on a hot path.
"""

from pathlib import Path

from opendpu.lab.command import run, succeeds

UNDERLAY = "ul"
OUT_OF_BAND = "oob"


def ip(*arguments: str, netns: str = "") -> str:
    return run("ip", *(["-n", netns] if netns else []), *arguments)


def namespaces(prefix: str) -> list[str]:
    """Names of the network namespaces that begin with `prefix`."""
    folder = Path("/run/netns")
    return sorted(entry.name for entry in folder.glob(f"{prefix}*")) if folder.is_dir() else []


def add_namespace(name: str) -> None:
    if name not in namespaces(name):
        ip("netns", "add", name)
    ip("link", "set", "lo", "up", netns=name)


def delete_namespace(name: str) -> None:
    if name in namespaces(name):
        ip("netns", "delete", name)


def pids_in(name: str) -> list[int]:
    """Processes whose network namespace this is."""
    return [int(word) for word in ip("netns", "pids", name).split()] if name in namespaces(name) else []


def has_link(netns: str, link: str) -> bool:
    return succeeds("ip", "-n", netns, "link", "show", link)


def add_switch(netns: str, name: str, *, mtu: int) -> None:
    if not has_link(netns, name):
        ip("link", "add", name, "type", "bridge", netns=netns)
    # A bridge that learns the MTU of its smallest port would drop jumbo frames.
    ip("link", "set", name, "mtu", str(mtu), "up", netns=netns)


def add_cable(fabric: str, switch: str, port: str, netns: str, link: str, *, mtu: int, address: str = "") -> None:
    """A veth pair from `switch` (its end is named `port`) to `link` in `netns`, both ends up.

    Checksum and segmentation offloads are off at both ends: userspace OVS passes frames on as they are, and a frame
    whose checksum was left to hardware that does not exist is dropped by the receiver (ping works, TCP hangs).
    """
    if not has_link(netns, link):
        if has_link(fabric, port):
            ip("link", "delete", port, netns=fabric)
        ip("link", "add", port, "mtu", str(mtu), "netns", fabric, "type", "veth",
           "peer", "name", link, "mtu", str(mtu), "netns", netns)  # fmt: skip
    for namespace, end in ((fabric, port), (netns, link)):
        no_offload(namespace, end)
    ip("link", "set", port, "master", switch, "up", netns=fabric)
    ip("link", "set", link, "up", netns=netns)
    if address:
        ip("address", "replace", address, "dev", link, netns=netns)


def no_offload(netns: str, link: str) -> None:
    run("nsenter", f"--net=/run/netns/{netns}", "--", "ethtool", "-K", link, "tx", "off")
