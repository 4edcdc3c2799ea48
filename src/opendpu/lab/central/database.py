"""MariaDB of the control plane: its data directory and the services' schemas.

The true migrations of Neutron and Ironic take seconds, so a migrated data directory is kept in a cache and copied for
each new lab. It is made by a private mariadbd that is stopped in good order before the copy: a running server's files
are not consistent.
"""

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path

import pymysql  # type: ignore[import-untyped]

from opendpu.errors import DeadlineError, OpenDPUError
from opendpu.lab.central.rendering import render
from opendpu.lab.files import write_private

Progress = Callable[[str], None]

_START_S = 60.0  # recovery after a kill included
_MIGRATE_S = 300.0
_SCHEMAS = ("neutron", "ironic")
_MIGRATIONS: Mapping[str, tuple[str, ...]] = {
    "neutron": ("neutron-db-manage", "upgrade", "heads"),
    "ironic": ("ironic-dbsync", "upgrade"),
}


def script(name: str) -> str:
    """A program installed beside this interpreter."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise OpenDPUError(f"{path} is missing: install the package with its `lab` extra")
    return str(path)


def schema_version() -> str:
    """What the schemas depend on: a cached or older data directory of another version is not taken as it is."""
    packages = [f"{name}-{metadata.version(name)}" for name in _SCHEMAS]
    banner = subprocess.run([_mariadbd(), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"Ver ([\w.]+)", banner)
    return "_".join([f"mariadb-{found.group(1) if found else 'unknown'}", *packages])


def _mariadbd() -> str:
    # Debian has it in sbin, which is not on everybody's PATH.
    path = shutil.which("mariadbd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/libexec")
    if path is None:
        raise OpenDPUError("mariadbd is not installed: apt-get install mariadb-server-core mariadb-client-core")
    return path


class Database:
    """One data directory and the mariadbd that serves it on `run/mariadb.sock`.

    `root` holds `data`, the stamp `schema-version` that says which migrations ran to their end, and `conf`.
    """

    def __init__(self, root: Path, run: Path) -> None:
        self.root = root
        self.run = run
        self.socket = run / "mariadb.sock"
        self.data = root / "data"
        self.config = root / "mariadb.cnf"
        self._stamp = root / "schema-version"

    def command(self) -> tuple[str, ...]:
        """The server in the foreground; a socket and a pid file left by a killed one do not disturb it."""
        return (_mariadbd(), f"--defaults-file={self.config}")

    def prepare(self, *, cache: Path | None, progress: Progress) -> None:
        """Write the configuration and see that there is a data directory, migrated already if there is a cache."""
        for folder in (self.root, self.run, self.root / "tmp"):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(
            self.config,
            render("mariadb.cnf", datadir=self.data, socket=self.socket, run=self.run, tmp=self.root / "tmp"),
        )
        if self.data.exists():
            return
        if cache is None:
            self._install()
        else:
            self._copy_from(_template(cache, progress))

    def initialise(self, progress: Progress) -> None:
        """Bring the schemas of the running server to the installed versions; nothing when they are."""
        self.wait_ready()
        version = schema_version()
        stamped = self._stamp.read_text() if self._stamp.exists() else ""
        if stamped == version:
            return
        progress("migrating the databases of Neutron and Ironic")
        with self.connect() as connection, connection.cursor() as cursor:
            for schema in _SCHEMAS:
                if not stamped:
                    # MariaDB cannot roll back DDL: what an interrupted first migration left must go.
                    cursor.execute(f"DROP DATABASE IF EXISTS {schema}")
                cursor.execute(f"CREATE DATABASE IF NOT EXISTS {schema}")
        self._migrate()
        write_private(self._stamp, version)

    def connect(self) -> pymysql.connections.Connection:
        return pymysql.connect(unix_socket=str(self.socket), user="root", autocommit=True, connect_timeout=5)

    def wait_ready(self, timeout: float = _START_S) -> None:
        deadline = time.monotonic() + timeout
        while True:
            try:
                self.connect().close()
            except pymysql.err.OperationalError as error:
                if time.monotonic() > deadline:
                    raise DeadlineError(
                        f"MariaDB does not answer on {self.socket} after {timeout:.0f} s ({error.args[-1]})"
                    ) from None
                time.sleep(0.05)
            else:
                return

    def _install(self) -> None:
        """An empty data directory; made aside, so that one that exists is whole."""
        aside = self.root / "data.new"
        shutil.rmtree(aside, ignore_errors=True)
        done = subprocess.run(
            [
                "mariadb-install-db", f"--defaults-file={self.config}", f"--datadir={aside}", "--skip-test-db",
                "--auth-root-authentication-method=socket", "--auth-root-socket-user=root",
            ],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise OpenDPUError(f"mariadb-install-db failed: {(done.stdout + done.stderr).strip()[-1000:]}")
        aside.rename(self.data)

    def _copy_from(self, template: "Database") -> None:
        aside = self.root / "data.new"
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(template.data, aside)
        write_private(self._stamp, template._stamp.read_text())
        aside.rename(self.data)

    def _migrate(self) -> None:
        """Run both services' migrations side by side, each a program of the service itself."""
        running: dict[str, tuple[subprocess.Popen[bytes], Path]] = {}
        for schema, (program, *arguments) in _MIGRATIONS.items():
            config, log = self.root / f"migrate-{schema}.conf", self.root / f"migrate-{schema}.log"
            url = f"mysql+pymysql://root@localhost/{schema}?unix_socket={self.socket}&charset=utf8mb4"
            write_private(config, f"[database]\nconnection = {url}\n")
            with log.open("wb") as output:
                process = subprocess.Popen(
                    [script(program), "--config-file", str(config), *arguments],
                    stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                    env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""},
                )  # fmt: skip
            running[schema] = (process, log)
        deadline = time.monotonic() + _MIGRATE_S
        try:
            for schema, (process, log) in running.items():
                try:
                    code = process.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    raise DeadlineError(f"the migration of {schema} runs for {_MIGRATE_S:.0f} s; see {log}") from None
                if code:
                    raise OpenDPUError(f"the migration of {schema} failed: {log.read_text()[-1000:]} (all: {log})")
        finally:
            for process, _ in running.values():
                process.kill()
                process.wait()


def _template(cache: Path, progress: Progress) -> Database:
    """The migrated data directory of the installed versions, made if the cache lacks it; others of it are dropped."""
    folder = cache / "mariadb" / schema_version()
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(folder.parent / "lock"), tempfile.TemporaryDirectory(prefix="odb-") as run:
        ready = Database(folder, Path(run))
        if not folder.exists():
            aside = folder.parent / "new"
            shutil.rmtree(aside, ignore_errors=True)
            making = Database(aside, Path(run))
            making.prepare(cache=None, progress=progress)
            with _served(making):
                making.initialise(progress)
            for other in folder.parent.iterdir():
                if other.is_dir() and other != aside:
                    shutil.rmtree(other)
            aside.rename(folder)
        return ready


@contextlib.contextmanager
def _served(database: Database) -> Iterator[None]:
    log = database.root / "mariadb.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            database.command(), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            code = process.wait(_START_S)
        finally:
            process.kill()
    if code:
        raise OpenDPUError(f"mariadbd ended with status {code}; see {log}")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Labs that start at once wait for one maker of the template."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
