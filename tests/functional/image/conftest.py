"""A server to boot images on: the lab's QEMU machine, cut down to disks and a user network on loopback."""

import contextlib
import io
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pycdlib
import pytest

from opendpu.lab.image import build_image
from opendpu.lab.layout import Layout
from opendpu.qmp import QmpConnection

OVMF = Path("/usr/share/OVMF")


def cache_folder() -> Path:
    """The lab's own: an image is built once for the demo and all tests."""
    return Layout.make().cache / "images"


@pytest.fixture(scope="session")
def tiny_image() -> Path:
    return build_image("tiny", cache_folder(), print)


@pytest.fixture(scope="session")
def debian_image() -> Path:
    return build_image("debian", cache_folder(), print)


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="ot-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


def config_drive(files: dict[str, str]) -> bytes:
    """An ISO 9660 config drive (label config-2) of these files, as Ironic's conductor makes one."""
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, vol_ident="config-2", joliet=3, rock_ridge="1.09")
    known: set[str] = set()
    for number, (name, text) in enumerate(files.items()):
        parts = name.split("/")
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth])
            if folder not in known:
                known.add(folder)
                short = "/" + "/".join(f"D{i}{p[:5].upper()}" for i, p in enumerate(parts[:depth]))
                iso.add_directory(short, rr_name=parts[depth - 1], joliet_path=f"/{folder}")
        short = "".join(f"/D{i}{p[:5].upper()}" for i, p in enumerate(parts[:-1])) + f"/F{number}.;1"
        data = text.encode()
        iso.add_fp(io.BytesIO(data), len(data), short, rr_name=parts[-1], joliet_path=f"/{name}")
    out = io.BytesIO()
    iso.write_fp(out)
    iso.close()
    return out.getvalue()


class Server:
    """A running QEMU q35 machine; `forward[port]` is the loopback port that leads to the guest's port."""

    def __init__(
        self, folder: Path, *, disk: Path, drive: bytes = b"", uefi: bool, ports: tuple[int, ...], memory: int
    ):
        self.folder = folder
        self.console_log = folder / "console.log"
        self.qmp_path = str(folder / "qmp")
        self.forward = {port: _free_port() for port in ports}
        self.begin = time.monotonic()
        forwards = "".join(f",hostfwd=tcp:127.0.0.1:{here}-:{there}" for there, here in self.forward.items())
        command = [
            "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-M", "q35,smm=off",
            "-accel", "tcg,thread=multi,tb-size=64", "-cpu", "max", "-smp", "2", "-m", str(memory),
            "-chardev", f"socket,id=con,path={folder}/console,server=on,wait=off,logfile={self.console_log}",
            "-serial", "chardev:con", "-qmp", f"unix:{self.qmp_path},server=on,wait=off",
            "-netdev", f"user,id=net0{forwards}", "-netdev", "user,id=net1,net=10.9.8.0/24",
            *(x for n in range(4) for x in ("-device", f"pcie-root-port,id=rp{n},chassis={n + 1},slot={n + 1}")),
            "-drive", f"if=none,id=root,format=qcow2,file={disk},snapshot=on",
            "-device", "nvme,bus=rp0,drive=root,serial=root-disk,bootindex=1",
            "-device", "virtio-net-pci,bus=rp1,netdev=net0,mac=52:54:00:00:00:01,romfile=",
        ]  # fmt: skip
        if uefi:
            shutil.copy(OVMF / "OVMF_VARS_4M.fd", folder / "vars.fd")
            code = OVMF / "OVMF_CODE_4M.fd"
            command += ["-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={code}"]
            command += ["-drive", f"if=pflash,unit=1,format=raw,file={folder}/vars.fd"]
        if drive:
            (folder / "config.iso").write_bytes(drive)
            command += ["-drive", f"if=none,id=cfg,format=raw,readonly=on,file={folder}/config.iso"]
            command += ["-device", "nvme,bus=rp2,drive=cfg,serial=config-drive"]
        with (folder / "qemu.err").open("wb") as err:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=err)

    def elapsed(self) -> float:
        return time.monotonic() - self.begin

    def close(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def console(self) -> str:
        return self.console_log.read_text(errors="replace") if self.console_log.exists() else ""

    def wait_console(self, text: str, timeout: float) -> float:
        """Seconds from power-on to the text on the console."""
        self._wait(lambda: text in self.console(), f"{text!r} on the console", timeout)
        return self.elapsed()

    def wait_banner(self, timeout: float) -> float:
        """Seconds from power-on to sshd's banner."""
        self._wait(self._banner, "sshd's banner", timeout)
        return self.elapsed()

    def _banner(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.forward[22]), 3) as sock:
            sock.settimeout(3)
            return sock.recv(7) == b"SSH-2.0"
        return False

    def _wait(self, done: object, what: str, timeout: float) -> None:
        assert callable(done)
        end = time.monotonic() + timeout
        while not done():
            state = self.process.poll()
            if state is not None:
                pytest.fail(f"QEMU ended ({state}): {(self.folder / 'qemu.err').read_text()}")
            if time.monotonic() > end:
                pytest.fail(f"no {what} within {timeout:.0f} s; the console says:\n{self.console()[-3000:]}")
            time.sleep(0.1)

    @contextlib.asynccontextmanager
    async def qmp(self):
        connection = QmpConnection(self.qmp_path, name="server")
        connection.start()
        try:
            yield connection
        finally:
            await connection.close()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture
def boot(folder: Path):
    """boot(disk=..., uefi=..., ports=(22,)) -> Server; ended with the test."""
    with contextlib.ExitStack() as stack:

        def start(**options) -> Server:
            server = Server(folder, **options)
            stack.callback(server.close)
            return server

        yield start


@pytest.fixture(name="config_drive")
def config_drive_fixture():
    return config_drive
