"""Taps: the SoC's ends of the emulated NIC functions.

Made with the ioctls of Linux' Documentation/networking/tuntap.rst and netdevice(7), in the network namespace of this
process. They are not persistent: QEMU holds the only open file, so that a tap lives exactly as long as its function.
"""

import errno
import fcntl
import os
import socket
import struct
from pathlib import Path

from opendpu.card.card import FunctionId
from opendpu.errors import FailedPreconditionError, InvalidArgumentError, OpenDPUError

_TUNSETIFF = 0x400454CA
_IFF_TAP = 0x0002
# No IFF_VNET_HDR: with it the guest offloads checksums that userspace OVS does not fill in, and TCP hangs.
_IFF_NO_PI = 0x1000
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_SIOCGIFMTU = 0x8921
_SIOCSIFMTU = 0x8922
_IFF_UP = 0x1


def open_tap(name: str, *, mtu: int) -> int:
    """Make a tap, up, with this MTU in bytes and no IPv6 of the SoC's own; return its file descriptor.

    Raises FailedPreconditionError when another device has the name.
    """
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
        # The representor is a cable's end, not an interface of the SoC: its stack must not answer the tenant.
        disable_ipv6 = Path("/proc/sys/net/ipv6/conf", name, "disable_ipv6")
        if disable_ipv6.exists():
            disable_ipv6.write_text("1")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            fcntl.ioctl(control, _SIOCSIFMTU, struct.pack("16si20x", name.encode(), mtu))
            flags = struct.unpack("16sh22x", fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack("16s24x", name.encode())))
            fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh22x", name.encode(), flags[1] | _IFF_UP))
    except OSError as error:
        os.close(fd)
        if error.errno in {errno.EBUSY, errno.EINVAL, errno.EEXIST}:
            raise FailedPreconditionError(
                f"a device named {name} is already in the SoC's network namespace and in use; remove it",
                reason="RepresentorTaken",
            ) from None
        raise OpenDPUError(f"cannot make the representor {name}: {error.strerror}") from error
    except BaseException:
        os.close(fd)
        raise
    return fd


def tap_mtu(name: str) -> int | None:
    """MTU in bytes of a device of this namespace; None when there is none of that name."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        try:
            answer = fcntl.ioctl(control, _SIOCGIFMTU, struct.pack("16s24x", name.encode()))
        except OSError:
            return None
    return int(struct.unpack("16si20x", answer)[1])


def representors() -> set[str]:
    """Names of the representors that are in this namespace now."""
    return {name for _, name in socket.if_nameindex() if is_representor(name)}


def is_representor(name: str) -> bool:
    try:
        FunctionId.parse(name)
    except InvalidArgumentError:
        return False
    return True
