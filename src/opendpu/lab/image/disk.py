"""From a root folder to a disk that boots with BIOS and with UEFI, without a loop device or a mount.

Layout (GPT): 1 MiB BIOS boot partition with GRUB's core, 8 MiB EFI system partition, and last, so that it can grow
with the disk, the root filesystem (ext4). GRUB's boot sector is patched as grub-bios-setup does (offsets: boot.S and
diskboot.S in GRUB's grub-core/boot/i386/pc).
"""

import struct
import uuid
from dataclasses import dataclass
from pathlib import Path

from opendpu.lab.image.tools import Tools

_SECTOR = 512
_MIB = 1 << 20
_BIOS_AT, _BIOS_MIB = 1, 1
_ESP_AT, _ESP_MIB = 2, 8
_ROOT_AT = 10
_GPT_TAIL_MIB = 1  # the backup table at the end of the disk

_BOOT_KERNEL_SECTOR = 0x5C  # boot.S: GRUB_BOOT_MACHINE_KERNEL_SECTOR
_BOOT_DRIVE_CHECK = 0x66  # boot.S: a jump that is made NOPs where the BIOS's drive number can be trusted
_BOOT_CODE_END = 440  # of the MBR; the disk signature and partitions follow
_CORE_BLOCK_LIST = 0x1F4  # diskboot.S: sector of the rest of the core
_GRUB_MODULES = ("part_gpt", "ext2", "configfile", "search", "search_fs_uuid", "linux", "serial", "terminal", "boot")


@dataclass(frozen=True, slots=True)
class Identity:
    """UUIDs of an image, fixed by its recipe, so that a disk can be told by them whatever its device name is."""

    filesystem: str
    partition: str

    @classmethod
    def of(cls, kind: str, key: str) -> "Identity":
        space = uuid.uuid5(uuid.NAMESPACE_OID, f"opendpu image {kind} {key}")
        return cls(str(uuid.uuid5(space, "filesystem")), str(uuid.uuid5(space, "partition")))


def make_disk(root: Path, out: Path, *, size_mib: int, kernel_arguments: str, identity: Identity, tools: Tools) -> None:
    """Write `root`, whose kernel is /vmlinuz, as a bootable qcow2 disk of `size_mib` MiB to `out`."""
    work = tools.work
    grub = root / "boot/grub"
    grub.mkdir(parents=True, exist_ok=True)
    (grub / "grub.cfg").write_text(
        "serial --unit=0 --speed=115200\nterminal_output serial\n"
        f"linux /vmlinuz root=PARTUUID={identity.partition} ro {kernel_arguments}\nboot\n"
    )
    early = work / "early.cfg"
    early.write_text(
        f"search --no-floppy --fs-uuid --set=root --hint=hd0,gpt1 {identity.filesystem}\n"
        "set prefix=($root)/boot/grub\nconfigfile /boot/grub/grub.cfg\n"
    )
    core, efi, esp = work / "core.img", work / "boot.efi", work / "esp.img"
    filesystem, raw = work / "root.img", work / "disk.raw"
    for target, path, extra in (("i386-pc", core, "biosdisk"), ("x86_64-efi", efi, "all_video")):
        tools.run("grub-mkimage", "-O", target, "-o", path, "-c", early, "-p", "/boot/grub", extra, *_GRUB_MODULES)

    root_mib = size_mib - _ROOT_AT - _GPT_TAIL_MIB
    tools.run("mke2fs", "-q", "-t", "ext4", "-L", "rootfs", "-U", identity.filesystem, "-E", "root_owner=0:0",
              "-m", "1", "-d", root, filesystem, f"{root_mib}M")  # fmt: skip
    _truncate(esp, _ESP_MIB * _MIB)
    tools.run("mkfs.vfat", "-n", "ESP", esp)
    tools.run("mmd", "-i", esp, "::EFI", "::EFI/BOOT")
    tools.run("mcopy", "-i", esp, efi, "::EFI/BOOT/BOOTX64.EFI")

    _truncate(raw, size_mib * _MIB)
    partitions: list[str] = []
    layout = ((14, _BIOS_AT, _BIOS_MIB, "ef02"), (15, _ESP_AT, _ESP_MIB, "ef00"), (1, _ROOT_AT, root_mib, "8304"))
    for number, at, mib, kind in layout:
        first = at * _MIB // _SECTOR
        partitions += ["-n", f"{number}:{first}:{first + mib * _MIB // _SECTOR - 1}", "-t", f"{number}:{kind}"]
    tools.run("sgdisk", "-a", "1", *partitions, "-u", f"1:{identity.partition}", raw)
    for part, at in ((esp, _ESP_AT), (filesystem, _ROOT_AT)):
        tools.run("dd", f"if={part}", f"of={raw}", "bs=1M", f"seek={at}", "conv=notrunc,sparse")
        part.unlink()
    _install_bios_grub(raw, core.read_bytes())
    tools.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, out)


def _truncate(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def _install_bios_grub(disk: Path, core: bytes) -> None:
    boot = bytearray(Path("/usr/lib/grub/i386-pc/boot.img").read_bytes())
    sector = _BIOS_AT * _MIB // _SECTOR
    assert len(core) <= _BIOS_MIB * _MIB
    patched = bytearray(core)
    struct.pack_into("<Q", patched, _CORE_BLOCK_LIST, sector + 1)
    struct.pack_into("<Q", boot, _BOOT_KERNEL_SECTOR, sector)
    boot[_BOOT_DRIVE_CHECK : _BOOT_DRIVE_CHECK + 2] = b"\x90\x90"
    with disk.open("r+b") as file:
        file.write(boot[:_BOOT_CODE_END])
        file.seek(_BIOS_AT * _MIB)
        file.write(patched)
