"""The agent's configuration file: TOML, readable by its owner only."""

import ipaddress
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opendpu.errors import InvalidArgumentError


@dataclass(frozen=True, slots=True)
class TlsConfig:
    ca: Path
    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class StorageConfig:
    daemon: str  # the storage daemon's QMP socket
    nbd: str  # its NBD socket
    pool: Path


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    ovsdb: str
    bridge: str = "br-int"


@dataclass(frozen=True, slots=True)
class UnderlayConfig:
    bridge: str
    address: str  # with its prefix length
    mtu: int


@dataclass(frozen=True, slots=True)
class Config:
    state_dir: Path
    listen: str
    tls: TlsConfig
    storage: StorageConfig
    network: NetworkConfig
    card_driver: str
    card: Mapping[str, Any] = field(default_factory=dict)  # the whole [card] table, for the driver
    underlay: UnderlayConfig | None = None
    metrics: tuple[str, int] | None = None
    interface_deadline_s: float = 60.0
    disk_deadline_s: float = 60.0


def load(path: Path) -> Config:
    """Read and check a configuration file. Raises InvalidArgumentError saying which key is wrong and what to do."""
    try:
        mode = path.stat().st_mode
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"{path}: can't read the configuration: {error}") from None
    if stat.S_IMODE(mode) & 0o077:
        raise InvalidArgumentError(f"{path} can be read or written by others; run: chmod 600 {path}")
    return parse(text, str(path))


def parse(text: str, source: str = "configuration") -> Config:
    """Turn TOML text into a `Config`; every problem is an InvalidArgumentError that names `source` and the key."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidArgumentError(f"{source}: not TOML: {error}") from None
    known = {"agent", "tls", "card", "storage", "network", "underlay"}
    if unknown := sorted(set(tables) - known):
        raise InvalidArgumentError(f"{source}: unknown table [{unknown[0]}]; known: {', '.join(sorted(known))}")
    agent = _Table(
        tables, "agent", source, {"state_dir", "listen", "metrics", "interface_deadline_s", "disk_deadline_s"}
    )
    tls = _Table(tables, "tls", source, {"ca", "certificate", "key"})
    storage = _Table(tables, "storage", source, {"daemon", "nbd", "pool"})
    network = _Table(tables, "network", source, {"ovsdb", "bridge"})
    card = _Table(tables, "card", source, None)
    return Config(
        state_dir=Path(agent.text("state_dir")),
        listen="{}:{}".format(*agent.address("listen")),
        metrics=agent.loopback("metrics") if "metrics" in agent.values else None,
        interface_deadline_s=agent.seconds("interface_deadline_s", 60.0),
        disk_deadline_s=agent.seconds("disk_deadline_s", 60.0),
        tls=TlsConfig(Path(tls.text("ca")), Path(tls.text("certificate")), Path(tls.text("key"))),
        storage=StorageConfig(storage.text("daemon"), storage.text("nbd"), Path(storage.text("pool"))),
        network=NetworkConfig(network.text("ovsdb"), network.text("bridge", "br-int")),
        card_driver=card.text("driver"),
        card=card.values,
        underlay=_underlay(tables, source) if "underlay" in tables else None,
    )


def _underlay(tables: Mapping[str, Any], source: str) -> UnderlayConfig:
    table = _Table(tables, "underlay", source, {"bridge", "address", "mtu"})
    address = table.text("address")
    try:
        ipaddress.ip_interface(address)
    except ValueError:
        raise table.wrong("address", "an address with its prefix length, such as 172.31.0.1/24") from None
    return UnderlayConfig(table.text("bridge"), address, table.integer("mtu", 1280, 65535))


class _Table:
    """One table of the file with typed look-ups."""

    def __init__(self, tables: Mapping[str, Any], name: str, source: str, known: set[str] | None) -> None:
        self.name = name
        self.source = source
        values = tables.get(name)
        if not isinstance(values, dict):
            raise InvalidArgumentError(f"{source}: table [{name}] is missing")
        if known is not None and (unknown := sorted(set(values) - known)):
            raise InvalidArgumentError(
                f"{source}: unknown key {unknown[0]!r} in [{name}]; known: {', '.join(sorted(known))}"
            )
        self.values: Mapping[str, Any] = values

    def wrong(self, key: str, want: str) -> InvalidArgumentError:
        have = self.values.get(key)
        found = "it is missing" if have is None else f"it is {have!r}"
        return InvalidArgumentError(f"{self.source}: [{self.name}] {key} must be {want}; {found}")

    def text(self, key: str, default: str | None = None) -> str:
        value = self.values.get(key, default)
        if not isinstance(value, str) or not value or "\0" in value:
            raise self.wrong(key, "a text that is not empty")
        return value

    def integer(self, key: str, low: int, high: int) -> int:
        value = self.values.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.wrong(key, f"a number from {low} to {high}")
        return value

    def seconds(self, key: str, default: float) -> float:
        value = self.values.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= 3600:
            raise self.wrong(key, "a number of seconds, more than 0 and at most 3600")
        return float(value)

    def address(self, key: str) -> tuple[str, int]:
        host, _, port = self.text(key).rpartition(":")
        if not host or not (port.isascii() and port.isdigit()) or not int(port[:6]) <= 65535:
            raise self.wrong(key, 'an address and port, such as "10.98.0.1:7443"')
        return host, int(port)

    def loopback(self, key: str) -> tuple[str, int]:
        """Metrics have no authentication of their own, so they are offered on the machine itself only."""
        host, port = self.address(key)
        try:
            local = ipaddress.ip_address(host.strip("[]")).is_loopback
        except ValueError:
            local = False
        if not local:
            raise self.wrong(key, 'a loopback address and port, such as "127.0.0.1:9180"')
        return host.strip("[]"), port
