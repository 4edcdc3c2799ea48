"""A real board (QEMU) and storage daemon in a folder of their own, ended by pid."""

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

_CLONE_NEWNET = 0x40000000


def wait_for(condition: Callable[[], bool], what: str, timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout} s for {what}")
        time.sleep(0.02)


class Program:
    def __init__(self, *command: str, log: Path) -> None:
        self.log = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL)

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        def checked() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode}: {self.log.read_text()}")
            return condition()

        wait_for(checked, what)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


class Rack:
    """One server's board, restarted by hand (tests are the supervisor)."""

    def __init__(self, *, slots: int = 6, memory_mib: int = 192) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ot-", dir="/tmp"))
        self.name = f"ot-{os.getpid()}-{self.folder.name[3:]}"
        self.uuid = str(uuid.uuid4())
        self.memory_mib = memory_mib
        self.ram_file = Path("/dev/shm", f"{self.name}.ram")
        self.config = self.folder / "board.toml"
        self.config.write_text(
            f'name="{self.name}"\nuuid="{self.uuid}"\nserial="SN1"\nvcpus=2\nmemory_mib={memory_mib}\nslots={slots}\n'
            f'run_dir="{self.folder}/run"\nstate_dir="{self.folder}/state"\nram_file="{self.ram_file}"\n'
        )
        self.card_qmp = str(self.folder / "run/card.qmp")
        self.bmc_qmp = str(self.folder / "run/bmc.qmp")
        self.console_log = self.folder / "state/console.log"
        self.nbd = str(self.folder / "nbd.sock")
        self.programs: dict[str, Program] = {}
        self.images: list[Path] = []

    def start_board(self) -> Program:
        for name in (self.card_qmp, self.bmc_qmp):
            Path(name).unlink(missing_ok=True)
        board = Program(
            sys.executable, "-m", "opendpu.lab.board", "--config", str(self.config), log=self.folder / "board.out"
        )
        self.programs["board"] = board
        board.wait_for(Path(self.card_qmp).exists, "the board's QMP socket")
        return board

    def start_storage(self, *images: Path) -> Program:
        """Serve raw images for writing, each by its file's stem."""
        Path(self.nbd).unlink(missing_ok=True)
        options = []
        for image in images:
            options += ["--blockdev", f"driver=file,node-name={image.stem},filename={image}"]
            options += ["--export", f"type=nbd,id={image.stem},node-name={image.stem},name={image.stem},writable=on"]
        storage = Program(
            "qemu-storage-daemon",
            *("--nbd-server", f"addr.type=unix,addr.path={self.nbd},max-connections=0"),
            *options,
            log=self.folder / "storage.out",
        )
        self.programs["storage"] = storage
        storage.wait_for(Path(self.nbd).exists, "the NBD socket")
        return storage

    def blank(self, name: str, size: int = 16 << 20) -> Path:
        image = self.folder / f"{name}.raw"
        with image.open("wb") as file:
            file.truncate(size)
        return image

    def memory_is_blank(self) -> bool:
        memory = self.ram_file.read_bytes()
        return memory.count(0) == len(memory)

    def close(self) -> None:
        for program in self.programs.values():
            program.stop()
        self.ram_file.unlink(missing_ok=True)
        shutil.rmtree(self.folder)


@contextlib.contextmanager
def soc_namespace() -> Iterator[None]:
    """This thread in a new network namespace; processes started before stay where they are."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if libc.unshare(_CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "unshare: network namespaces need root")
        yield
    finally:
        libc.setns(before, _CLONE_NEWNET)
        os.close(before)
