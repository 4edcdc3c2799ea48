"""A server's BMC: Redfish over HTTPS for a board, by sushy-tools.

    python -m opendpu.lab.bmc --config bmc.toml

sushy-tools serves the protocol; here is the driver of the one system behind it. The board may restart under a running
BMC. sushy-tools is a Flask application without a door for foreign drivers: its `systems` property is replaced.
"""

import argparse
import asyncio
import logging
import ssl
import sys
import threading
import tomllib
from collections.abc import Awaitable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import bcrypt
from sushy_tools import error as redfish
from sushy_tools.emulator import main as emulator
from sushy_tools.emulator.resources.systems.base import AbstractSystemsDriver
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from opendpu.errors import InvalidArgumentError, OpenDPUError, UnavailableError
from opendpu.lab.power import BoardPower, parse_boot_device

log = logging.getLogger(__name__)

T = TypeVar("T")

_CALL_S = 90.0
_IDLE_S = 30.0
_BCRYPT_COST = 8  # about 15 ms: paid at each request, and the passwords are long random ones


@dataclass(frozen=True, slots=True)
class BmcConfig:
    """The BMC's configuration file, key by key. `auth_file` is an Apache htpasswd file with bcrypt digests."""

    name: str
    uuid: str
    vcpus: int
    memory_mib: int
    qmp: str
    ram_file: str
    console_log: str
    listen: str
    port: int
    certificate: str
    key: str
    auth_file: str
    state_dir: str


def read_config(path: Path) -> BmcConfig:
    """Raises InvalidArgumentError naming the key that is wrong."""
    with path.open("rb") as file:
        table: dict[str, Any] = tomllib.load(file)
    for field in fields(BmcConfig):
        if type(table.get(field.name)) is not field.type:
            raise InvalidArgumentError(f"{path}: {field.name} is missing or of the wrong type")
    unknown = table.keys() - {field.name for field in fields(BmcConfig)}
    if unknown:
        raise InvalidArgumentError(f"{path}: unknown keys {', '.join(sorted(unknown))}")
    return BmcConfig(**table)


def htpasswd_line(username: str, password: str) -> str:
    """A line for `auth_file`."""
    digest = bcrypt.hashpw(password.encode(), bcrypt.gensalt(_BCRYPT_COST)).decode()
    return f"{username}:{digest}\n"


class BoardSystems(AbstractSystemsDriver):  # type: ignore[misc]
    """sushy-tools' view of one board. Its methods run in the web server's threads, the board's power in `loop`."""

    def __init__(self, config: BmcConfig, power: BoardPower, loop: asyncio.AbstractEventLoop) -> None:
        self._config = config
        self._power = power
        self._loop = loop

    def _run(self, work: Awaitable[T]) -> T:
        async def bounded() -> T:
            return await asyncio.wait_for(work, _CALL_S)

        try:
            return asyncio.run_coroutine_threadsafe(bounded(), self._loop).result()
        except UnavailableError as error:
            raise redfish.FishyError(str(error), code=503) from None
        except (OpenDPUError, TimeoutError) as error:
            raise redfish.FishyError(str(error) or f"the board took longer than {_CALL_S:.0f} s") from None

    def _check(self, identity: str) -> None:
        if identity not in {self._config.uuid, self._config.name}:
            raise redfish.NotFound(f"there is no system {identity!r} here")
        if identity != self._config.uuid:
            raise redfish.AliasAccessError(self._config.uuid)

    @property
    def driver(self) -> str:
        return "<opendpu board>"

    @property
    def systems(self) -> list[str]:
        return [self._config.uuid]

    def uuid(self, identity: str) -> str:
        self._check(identity)
        return self._config.uuid

    def name(self, identity: str) -> str:
        self._check(identity)
        return self._config.name

    def get_power_state(self, identity: str) -> str:
        self._check(identity)
        return "On" if self._run(self._power.is_on()) else "Off"

    def set_power_state(self, identity: str, state: str) -> None:
        self._check(identity)
        if state not in self._power.resets:
            raise redfish.BadRequest(f"ResetType {state!r}: use one of {', '.join(self._power.resets)}")
        self._run(self._power.resets[state]())

    def get_boot_device(self, identity: str) -> str:
        self._check(identity)
        return self._power.boot_device.value

    def set_boot_device(self, identity: str, boot_source: str) -> None:
        """Takes effect at the next power-on, as on a real board."""
        self._check(identity)
        if boot_source == "None":
            return  # Redfish: no override; the disks' order is the rule
        try:
            self._power.boot_device = parse_boot_device(boot_source)
        except InvalidArgumentError as error:
            raise redfish.BadRequest(str(error)) from None

    def get_boot_mode(self, identity: str) -> str:
        self._check(identity)
        return "UEFI"

    def set_boot_mode(self, identity: str, boot_mode: str) -> None:
        self._check(identity)
        if boot_mode != "UEFI":
            raise redfish.BadRequest(f"boot mode {boot_mode!r}: this board has UEFI only")

    def get_secure_boot(self, identity: str) -> bool:
        """Said plainly: clients take sushy-tools' "not implemented" for a fault that passes, and ask ten times."""
        self._check(identity)
        return False

    def set_secure_boot(self, identity: str, secure: bool) -> None:
        self._check(identity)
        if secure:
            raise redfish.BadRequest("this board's firmware has no Secure Boot")

    def get_total_memory(self, identity: str) -> float:
        self._check(identity)
        return self._config.memory_mib / 1024

    def get_total_cpus(self, identity: str) -> int:
        self._check(identity)
        return self._config.vcpus

    def get_bios(self, identity: str) -> dict[str, str]:
        self._check(identity)
        return {"BootMode": "Uefi"}

    def reset_bios(self, identity: str) -> None:
        self._check(identity)
        self._run(self._power.reset_variables())


class _Handler(WSGIRequestHandler):  # type: ignore[misc]
    timeout = _IDLE_S  # of a connection on which nothing comes, so that threads do not pile up

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        log.info("%s %s %s %s %s", self.address_string(), self.command, self.path, code, size)


def make_bmc(config: BmcConfig, power: BoardPower, loop: asyncio.AbstractEventLoop) -> BaseWSGIServer:
    """The HTTPS server, bound; run it with `serve_forever`. One per process: sushy-tools' application is a global."""
    Path(config.state_dir).mkdir(mode=0o700, parents=True, exist_ok=True)
    driver = BoardSystems(config, power, loop)
    emulator.Application.systems = property(lambda _: driver)
    emulator.app.configure(
        extra_config={"SUSHY_EMULATOR_AUTH_FILE": config.auth_file, "SUSHY_EMULATOR_STATE_DIR": config.state_dir}
    )
    server = make_server(config.listen, config.port, emulator.app, threaded=True, request_handler=_Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(config.certificate, config.key)
    # The handshake belongs to the connection's thread: in `accept` one silent client would stop the BMC for all.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.ssl_context = context
    return server


def main() -> None:
    parser = argparse.ArgumentParser(prog="opendpu.lab.bmc", description="An emulated server's Redfish BMC.")
    parser.add_argument("--config", type=Path, required=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        config = read_config(parser.parse_args().config)
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, name="power", daemon=True).start()
        power = asyncio.run_coroutine_threadsafe(_make_power(config), loop).result()
        server = make_bmc(config, power, loop)
    except (InvalidArgumentError, OSError, tomllib.TOMLDecodeError, redfish.FishyError) as error:
        sys.exit(f"bmc: {error}")
    server.serve_forever()


async def _make_power(config: BmcConfig) -> BoardPower:
    power = BoardPower(qmp=config.qmp, ram_file=Path(config.ram_file), console_log=Path(config.console_log))
    power.start()
    return power


if __name__ == "__main__":
    main()
