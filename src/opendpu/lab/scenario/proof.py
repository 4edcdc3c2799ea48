"""What a proof says."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from opendpu.errors import OpenDPUError


@dataclass
class Proof:
    """`ok` is set at the end of a proof that went through; `measured` holds what was seen on the way."""

    name: str
    ok: bool = False
    measured: dict[str, Any] = field(default_factory=dict)

    def check(self, condition: bool, text: str) -> None:
        """Note a fact that must hold."""
        self.measured.setdefault("facts", {})[text] = bool(condition)
        if not condition:
            raise ProofError(f"{self.name}: not true that {text}")


class ProofError(OpenDPUError):
    """A proof failed; the text says which fact does not hold."""

    reason = "ProofFailed"


@contextmanager
def proving(proofs: dict[str, Proof], name: str) -> Iterator[Proof]:
    """Run a proof's body; an error of any kind makes it not ok and goes on upwards."""
    proof = proofs[name] = Proof(name)
    try:
        yield proof
        proof.ok = True
    except Exception as error:
        proof.measured["error"] = str(error)
        raise
