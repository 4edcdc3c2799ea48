"""A tiny Linux for fast tests: Debian's cloud kernel, a static busybox and the modules of a server's NICs and disks.

It says `READY up` on its serial console, takes addresses by DHCP on every NIC, also on one plugged later, answers HTTP
on port 80 with what it sees of its hardware, and has a root shell on the console.
"""

import os
import shutil
import stat
from pathlib import Path

from opendpu.lab.image.disk import Identity, make_disk
from opendpu.lab.image.tools import Tools, host_sources

SIZE_MIB = 96
MODULES = ("virtio_pci", "virtio_net", "virtio_blk", "isofs")
TEMPLATES = Path(__file__).parent / "templates"
FILES = {
    "tiny-init": "init",
    "tiny-hotplug": "etc/hotplug",
    "tiny-dhcp": "etc/dhcp",
    "tiny-hardware": "www/cgi-bin/hardware",
}
KERNEL_ARGUMENTS = (
    "rw console=ttyS0 quiet loglevel=3 no_timer_check nowatchdog mitigations=off cryptomgr.notests "
    "random.trust_cpu=on 8250.nr_uarts=1 net.ifnames=0 init=/init panic=-1"
)


def build(work: Path, key: str, tools: Tools) -> Path:
    """Build the image in the folder `work`; returns the qcow2 file there."""
    packages, root, image = work / "packages", work / "root", work / "tiny.qcow2"
    tools.progress("kernel and busybox from the mirror (debootstrap)")
    tools.bootstrap(packages, host_sources(), "--download-only", "--include=linux-image-cloud-amd64,busybox-static")
    unpacked = work / "unpacked"
    for pattern in ("linux-image-[0-9]*-cloud-amd64_*.deb", "busybox-static_*.deb"):
        package = max((packages / "var/cache/apt/archives").glob(pattern))
        tools.run("dpkg-deb", "-x", package, unpacked)

    for folder in ("bin", "dev", "proc", "sys", "run", "tmp", "mnt"):
        (root / folder).mkdir(parents=True)
    for name, target in FILES.items():
        path = root / target
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(TEMPLATES / name, path)
        path.chmod(0o755)
    shutil.copy(unpacked / "bin/busybox", root / "bin/busybox")
    # The root stays read-only: the links are made now. The kernel opens /dev/console before anything mounts /dev.
    tools.run("chroot", root, "/bin/busybox", "--install", "-s", "/bin")
    os.mknod(root / "dev/console", 0o600 | stat.S_IFCHR, os.makedev(5, 1))
    shutil.copy(max((unpacked / "boot").glob("vmlinuz-*")), root / "vmlinuz")
    _copy_modules(unpacked, root, tools)
    tools.progress("writing the disk")
    identity = Identity.of("tiny", key)
    make_disk(root, image, size_mib=SIZE_MIB, kernel_arguments=KERNEL_ARGUMENTS, identity=identity, tools=tools)
    return image


def _copy_modules(unpacked: Path, root: Path, tools: Tools) -> None:
    """MODULES and what they need, with the indexes that modprobe reads."""
    release = next((unpacked / "lib/modules").iterdir()).name
    tools.run("depmod", "-b", unpacked, release)
    source, target = unpacked / "lib/modules" / release, root / "lib/modules" / release
    for line in (source / "modules.dep").read_text().splitlines():
        module, _, needs = line.partition(":")
        if Path(module).name.split(".")[0].replace("-", "_") in MODULES:
            for name in (module, *needs.split()):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source / name, target / name)
    for index in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        if os.path.exists(source / index):
            shutil.copy(source / index, target / index)
    tools.run("depmod", "-b", root, release)
