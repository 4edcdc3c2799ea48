"""The card interface: a DPU as hardware.

A card offers its host PCIe functions (PF, VF, SF) that are NICs, and disk controllers. Each NIC function has a
*representor* on the SoC: the netdev whose traffic is the function's (Linux: Documentation/networking/representors.rst).
The emulated card and the real ones implement `Card`; tests/card/ holds the conformance suite that each must pass.

A card keeps no store of its own: `functions()` and `disks()` report what is in the hardware now. Whoever decides what
should be there (the agent) keeps that elsewhere. Plugging and unplugging are idempotent.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from opendpu.errors import InvalidArgumentError


class FunctionKind(StrEnum):
    """Physical, virtual (SR-IOV) or sub function (Linux: devlink-port.rst)."""

    PF = "pf"
    VF = "vf"
    SF = "sf"


_REPRESENTOR = re.compile(r"pf(?P<pf>\d{1,2})(?:hpf|(?P<kind>vf|sf)(?P<index>\d{1,4}))")


@dataclass(frozen=True, slots=True, order=True)
class FunctionId:
    """Which function of the card. `index` counts VFs or SFs of one PF from 0; it is 0 for the PF itself."""

    pf: int
    kind: FunctionKind
    index: int = 0

    @property
    def representor(self) -> str:
        """The stable name of its representor on the SoC: pf0hpf, pf0vf3, pf0sf12 (as the Linux drivers name them)."""
        return f"pf{self.pf}hpf" if self.kind is FunctionKind.PF else f"pf{self.pf}{self.kind}{self.index}"

    @classmethod
    def parse(cls, representor: str) -> "FunctionId":
        match = _REPRESENTOR.fullmatch(representor)
        if match is None:
            raise InvalidArgumentError(
                f"{representor!r} is no representor name; they look like pf0hpf, pf0vf3, pf0sf12"
            )
        if match["kind"] is None:
            return cls(int(match["pf"]), FunctionKind.PF)
        return cls(int(match["pf"]), FunctionKind(match["kind"]), int(match["index"]))

    def __str__(self) -> str:
        return self.representor


@dataclass(frozen=True, slots=True)
class CardLimits:
    """What the hardware can do. `slots` bounds functions and disks together: each takes one hot-plug slot."""

    pfs: int = 2
    vfs_per_pf: int = 8
    sfs_per_pf: int = 8
    slots: int = 16
    mtu_max: int = 9216

    def function_ids(self, kind: FunctionKind) -> list[FunctionId]:
        """All functions of a kind that the card has, in a stable order."""
        count = {FunctionKind.PF: 1, FunctionKind.VF: self.vfs_per_pf, FunctionKind.SF: self.sfs_per_pf}[kind]
        return [FunctionId(pf, kind, index) for pf in range(self.pfs) for index in range(count)]


@dataclass(frozen=True, slots=True)
class CardInfo:
    driver: str
    model: str
    serial: str
    limits: CardLimits


@dataclass(frozen=True, slots=True)
class Function:
    """A function the host has (or still holds, while `unplugging`)."""

    id: FunctionId
    mac: str
    mtu: int
    slot: int
    unplugging: bool = False

    @property
    def representor(self) -> str:
        return self.id.representor


@dataclass(frozen=True, slots=True)
class NbdBackend:
    """Where the bytes of a disk come from: an NBD export behind a unix socket (the storage daemon's)."""

    socket: str
    export: str


@dataclass(frozen=True, slots=True)
class Disk:
    """A PCIe disk that the host has (or still holds, while `unplugging`). `serial` is what the guest's OS shows."""

    id: str
    serial: str
    slot: int
    boot: bool = False
    unplugging: bool = False


@dataclass(frozen=True, slots=True)
class DiskCounters:
    """Bytes that the host has read and written, since the disk was plugged or the host's board started."""

    bytes_read: int
    bytes_written: int


class HostPower(StrEnum):
    ON = "on"
    OFF = "off"
    ABSENT = "absent"  # the card has no bus: the host's board does not answer


class CardEventKind(StrEnum):
    HOST_POWER = "host-power"  # on, off, reset or absent: look at host_power()
    FUNCTION_GONE = "function-gone"  # the host released `subject`, a representor's name
    DISK_GONE = "disk-gone"  # the host released `subject`, a disk's id
    BUS_LOST = "bus-lost"
    BUS_BACK = "bus-back"  # also after a replacement of the board: everything must be looked at anew


@dataclass(frozen=True, slots=True)
class CardEvent:
    kind: CardEventKind
    subject: str = ""


@dataclass(frozen=True, slots=True)
class CardHealth:
    ok: bool
    problems: list[str] = field(default_factory=list)


class Card(ABC):
    """A DPU. All methods run in one asyncio event loop; none blocks it."""

    @abstractmethod
    async def start(self) -> None:
        """Connect to the hardware; return without waiting for a host to be there."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of the hardware and leave it as it is: the host keeps its functions and disks."""

    @abstractmethod
    def subscribe(self, handler: Callable[[CardEvent], None]) -> None:
        """Call `handler` in the event loop for each event from now on. It must not block."""

    @abstractmethod
    async def info(self) -> CardInfo: ...

    @abstractmethod
    async def health(self) -> CardHealth: ...

    @abstractmethod
    async def host_power(self) -> HostPower: ...

    @abstractmethod
    async def functions(self) -> dict[FunctionId, Function]:
        """Functions that the host holds now."""

    @abstractmethod
    async def plug_function(self, id: FunctionId, *, mac: str, mtu: int) -> Function:
        """Give the host a NIC and return when its representor exists on the SoC, is up and has that MTU.

        The same call again changes nothing. Raises AlreadyExistsError when the function is plugged with another MAC or
        is still being unplugged, ResourceExhaustedError when the card has no such function or no free slot,
        FailedPreconditionError when this kind needs the host powered off (PF), UnavailableError when the bus is down.
        """

    @abstractmethod
    async def unplug_function(self, id: FunctionId, *, timeout: float) -> None:
        """Take a NIC away; return when the host released it and the representor is gone. None such: nothing to do.

        Raises DeadlineError when the host's OS has not released it within `timeout` seconds; the request stands, and
        FUNCTION_GONE follows when it is done (at the next power cycle at the latest).
        """

    @abstractmethod
    async def disks(self) -> dict[str, Disk]:
        """Disks that the host holds now, by id."""

    @abstractmethod
    async def disk_counters(self) -> dict[str, DiskCounters]:
        """What the host did to its disks, by disk id; one question to the hardware for all."""

    @abstractmethod
    async def plug_disk(
        self, id: str, backend: NbdBackend, *, serial: str, boot: bool = False, read_only: bool = False
    ) -> Disk:
        """Offer the host a PCIe disk with this serial number (at most 20 ASCII characters, NVMe base specification).

        `id` is [a-z0-9-]{1,48}. A boot disk goes into the first slot, which no other device takes, so that firmware
        finds it first. The same call again changes nothing. Raises as `plug_function` does.
        """

    @abstractmethod
    async def unplug_disk(self, id: str, *, timeout: float) -> None:
        """Take a disk away, as `unplug_function` does; DISK_GONE follows a late release."""
