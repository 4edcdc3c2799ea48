"""A small real Debian 12: systemd, cloud-init, OpenSSH; DHCP on every NIC; one boot to SSH, quick also without KVM.

What makes it quick, each measured under TCG: no initrd (the cloud kernel has NVMe and ext4 built in), no boot menu, all
stages of cloud-init in one process, only units that a server needs, the default user made beforehand.
"""

import shutil
from pathlib import Path

from opendpu.lab.image.disk import Identity, make_disk
from opendpu.lab.image.tools import Tools, host_sources

SIZE_MIB = 2048
PACKAGES = (
    "systemd-sysv", "udev", "dbus", "linux-image-cloud-amd64", "cloud-init", "openssh-server", "sudo", "iproute2",
    "iputils-ping", "netcat-openbsd", "pciutils", "util-linux", "systemd-resolved",
)  # fmt: skip
TEMPLATES = Path(__file__).parent / "templates"

# Where each template goes, and its mode.
FILES = {
    "cloud.cfg": ("/etc/cloud/cloud.cfg.d/90-opendpu.cfg", 0o644),
    "cloud-init-stages": ("/usr/local/lib/cloud-init-stages", 0o755),
    "cloud-init-stages.service": ("/etc/systemd/system/cloud-init-stages.service", 0o644),
    "dhcp.network": ("/etc/systemd/network/80-dhcp.network", 0o644),
    "journald.conf": ("/etc/systemd/journald.conf.d/small.conf", 0o644),
    "modules.conf": ("/etc/modules-load.d/server.conf", 0o644),
    "repart.conf": ("/etc/repart.d/50-root.conf", 0o644),
    "udev-trigger.conf": ("/etc/systemd/system/systemd-udev-trigger.service.d/short.conf", 0o644),
}

# quiet: each line on an emulated serial port costs. no*: checks of real hardware that an emulated board has not.
# Not tsc=reliable: on a busy host the kernel may take the TSC's rate five times too low, and its watchdog then has to
# fall back to another clock, or every timeout of the guest is as much too short.
KERNEL_ARGUMENTS = (
    "console=ttyS0 quiet loglevel=3 no_timer_check nowatchdog mitigations=off audit=0 apparmor=0 selinux=0 "
    "cryptomgr.notests random.trust_cpu=on rcupdate.rcu_expedited=1 8250.nr_uarts=1 systemd.show_status=0"
)


def build(work: Path, key: str, tools: Tools) -> Path:
    """Build the image in the folder `work`; returns the qcow2 file there."""
    root, image = work / "root", work / "debian.qcow2"
    install(root, tools)
    tools.progress("configuring")
    identity = Identity.of("debian", key)
    configure(root, identity, tools)
    tools.progress("writing the disk")
    make_disk(root, image, size_mib=SIZE_MIB, kernel_arguments=KERNEL_ARGUMENTS, identity=identity, tools=tools)
    return image


def install(root: Path, tools: Tools) -> None:
    """The packages, from the mirror."""
    sources = host_sources()
    tools.progress("Debian 12's base from the mirror (debootstrap)")
    tools.bootstrap(root, sources)
    if sources:
        (root / "etc/apt/sources.list").write_text(sources)
    (root / "etc/dpkg/dpkg.cfg.d/opendpu").write_text((TEMPLATES / "dpkg.cfg").read_text())
    # The mirror's name is looked up from inside; systemd-resolved makes this file its own at the first boot.
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    tools.progress(f"packages: {' '.join(PACKAGES)}")
    tools.run_isolated(root, (TEMPLATES / "install.sh").read_text().replace("@PACKAGES@", " ".join(PACKAGES)))


def configure(root: Path, identity: Identity, tools: Tools) -> None:
    """Our files, the units that start, and no identity: host keys and machine id are each server's own."""
    for name, (target, mode) in FILES.items():
        path = root / target.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(TEMPLATES / name, path)
        path.chmod(mode)
    (root / "etc/fstab").write_text(f"PARTUUID={identity.partition} / ext4 defaults,x-systemd.growfs 0 1\n")
    tools.run_isolated(root, (TEMPLATES / "configure.sh").read_text())
