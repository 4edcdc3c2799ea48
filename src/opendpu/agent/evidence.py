"""What is seen from outside of an operating system that comes up, since the host was last powered on."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field


@dataclass(slots=True)
class BootEvidence:
    """Times are seconds since the epoch, 0 for "not yet". Kept in the store, so a restart of the agent loses none."""

    powered_on: float = 0.0
    first_disk_read: float = 0.0
    first_packet: float = 0.0
    bytes_read: int = 0
    rx_baseline: dict[str, int] = field(default_factory=dict)  # representor -> packets before the power-on
    disk_counter: dict[str, int] = field(default_factory=dict)  # disk -> the card's count when last seen

    @classmethod
    def begin(cls, rx_packets: Mapping[str, int], disk_counter: Mapping[str, int]) -> "BootEvidence":
        return cls(powered_on=time.time(), rx_baseline=dict(rx_packets), disk_counter=dict(disk_counter))

    @classmethod
    def parse(cls, text: str) -> "BootEvidence":
        """Read back `dump`; a text that is none (of another version, say) is no evidence."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return cls()

    def dump(self) -> str:
        return json.dumps(asdict(self))

    def saw_disk(self, disk: str, counter: int) -> bool:
        """The card counted `counter` bytes read of the boot disk. Returns whether that is news."""
        before = self.disk_counter.get(disk, 0)
        more = counter - before if counter >= before else counter  # a disk plugged anew counts from 0
        self.disk_counter[disk] = counter
        if more:
            self.bytes_read += more
            self.first_disk_read = self.first_disk_read or time.time()
        return more > 0

    def saw_packets(self, representor: str, rx_packets: int) -> bool:
        """OVS counted packets from the host. Returns whether this is the first since the power-on."""
        if not self.powered_on or self.first_packet:
            return False
        before = self.rx_baseline.get(representor, 0)
        if rx_packets < before:
            before = self.rx_baseline[representor] = 0  # OVS was restarted and counts from 0 again
        if rx_packets > before:
            self.first_packet = time.time()
            return True
        return False
