"""Passwords of a lab, made once and kept in a file only root reads."""

import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from opendpu.lab.files import write_private


@dataclass(frozen=True, slots=True)
class Secrets:
    bmc_user: str
    bmc_password: str

    @classmethod
    def load(cls, path: Path) -> "Secrets":
        """The secrets in `path`; made first when there are none."""
        try:
            return cls(**json.loads(path.read_text()))
        except FileNotFoundError:
            made = cls("admin", secrets.token_urlsafe(18))
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_private(path, json.dumps(asdict(made)))
            return made
