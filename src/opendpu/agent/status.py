"""How far a resource is, in memory: the agent learns it anew from the hardware after a restart."""

import time
from dataclasses import dataclass, field

from google.protobuf.timestamp_pb2 import Timestamp

from opendpu.agent.v1 import agent_pb2 as pb


def timestamp(seconds: float) -> Timestamp:
    """A point in time (seconds since the epoch) as the API writes it."""
    result = Timestamp()
    result.FromNanoseconds(int(seconds * 1e9))
    return result


@dataclass(slots=True)
class Status:
    state: "pb.State.ValueType" = pb.STATE_PENDING
    reason: str = ""
    message: str = ""
    observed_generation: int = 0
    deadline: float | None = None  # seconds since the epoch
    stages: dict[str, float] = field(default_factory=dict)

    def reach(self, stage: str) -> None:
        """Note when a stage ended; a later repetition (say, after a restart of OVS) does not move it."""
        self.stages.setdefault(stage, time.time())

    def to_message(self) -> pb.Status:
        return pb.Status(
            state=self.state,
            reason=self.reason,
            message=self.message,
            observed_generation=self.observed_generation,
            deadline=None if self.deadline is None else timestamp(self.deadline),
            stages=[pb.Stage(name=name, ended=timestamp(at)) for name, at in self.stages.items()],
        )
