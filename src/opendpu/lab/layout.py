"""Where things of a lab are, and what its addresses are. One place, so that nothing else invents a path or a number."""

import json
import os
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from opendpu.errors import InvalidArgumentError, NotFoundError

DEFAULT_NAME = "dpu"
MAX_SERVERS = 90  # the out-of-band network's addresses: .1-.90 SoCs, .101-.190 BMCs

_RUN_ROOT = Path("/run/opendpu")
_NAME = re.compile(r"[a-z][a-z0-9]{0,7}")  # netns and unix socket names are built from it

UNDERLAY_MTU = 9000
OOB_MTU = 1500
MANAGEMENT_ADDRESS = "10.98.0.254"
GATEWAY_INDEX = 253  # 10.98.0.253 and 10.99.0.253


def default_state_root() -> Path:
    return Path(os.environ.get("OPENDPU_STATE", "/var/lib/opendpu"))


@dataclass(frozen=True, slots=True)
class Settings:
    """What a person chose when the lab was brought up; kept for the next `up`."""

    servers: int = 2
    vcpus: int = 2
    memory_mib: int = 1024
    slots: int = 16
    accel: str = "tcg"


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths: `state` outlives a reboot of the machine, `run` (sockets, pids) need not. `cache` is shared by labs."""

    name: str
    state: Path
    run: Path
    cache: Path

    @classmethod
    def make(cls, name: str = DEFAULT_NAME, state_root: Path | None = None) -> "Layout":
        if not _NAME.fullmatch(name):
            raise InvalidArgumentError(f"{name!r} is no lab name: a letter, then up to 7 of a-z and 0-9")
        root = (state_root or default_state_root()).absolute()
        return cls(name, root / "labs" / name, _RUN_ROOT / name, root / "cache")

    @classmethod
    def find(cls, name: str = DEFAULT_NAME) -> "Layout":
        """The layout of a lab that is up, wherever its state is."""
        layout = cls.make(name)
        try:
            root = Path(json.loads((layout.run / "lab.json").read_text())["state_root"])
        except (OSError, ValueError, KeyError):
            raise NotFoundError(f"lab {name!r} is not up; bring it up with: opendpu lab up") from None
        return cls.make(name, root)

    def mark_up(self) -> None:
        """Leave a note in `run` so that `find` works from any folder."""
        self.run.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self.run / "lab.json").write_text(json.dumps({"state_root": str(self.state.parent.parent)}))

    def netns(self, part: str) -> str:
        return f"{self.name}-{part}"

    @property
    def management(self) -> str:
        return self.netns("mgmt")

    @property
    def fabric(self) -> str:
        return self.netns("fabric")

    @property
    def pool(self) -> Path:
        return self.state / "pool"

    @property
    def pki(self) -> Path:
        return self.state / "pki"

    def settings(self) -> Settings:
        try:
            return Settings(**json.loads((self.state / "settings.json").read_text()))
        except FileNotFoundError:
            return Settings()

    def save_settings(self, **changes: object) -> Settings:
        """Keep the given choices, and leave those that are None as they are."""
        settings = replace(self.settings(), **{key: value for key, value in changes.items() if value is not None})  # type: ignore[arg-type]
        if not 1 <= settings.servers <= MAX_SERVERS:
            raise InvalidArgumentError(f"a lab has 1 to {MAX_SERVERS} servers, not {settings.servers}")
        self.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self.state / "settings.json").write_text(json.dumps(asdict(settings), indent=1))
        return settings


def oob_address(host: int) -> str:
    return f"10.98.0.{host}"


def tunnel_address(host: int) -> str:
    return f"10.99.0.{host}"
