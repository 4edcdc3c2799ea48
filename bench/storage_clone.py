"""How long a clone takes, and what write-through costs: python bench/storage_clone.py [--out FILE].

Runs a storage daemon in a temporary folder (--dir: on which file system) and prints JSON: medians of clone times of a
2 GiB image against a full copy of it, and 4 KiB random-place write rates (queue depth 8) of a write-through export
against a write-back one, in turns within one run, into clusters never written before and into written ones.
"""

import argparse
import asyncio
import contextlib
import json
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from opendpu.card.card import NbdBackend
from opendpu.storage.attacher import VolumeAttacher
from opendpu.storage.pool import FilePool
from opendpu.storage.program import daemon_command

IMAGE_BYTES = 2 << 30
WRITES = 1000
STEP = 68 << 10  # bytes from one write to the next: each in a 64 KiB cluster of its own


@contextlib.asynccontextmanager
async def serving(folder: Path, pool: FilePool, *, write_through: bool) -> AsyncIterator[VolumeAttacher]:
    await asyncio.to_thread(folder.mkdir)
    qmp, nbd = str(folder / "qmp"), str(folder / "nbd")
    daemon = await asyncio.create_subprocess_exec(*daemon_command(qmp, nbd))
    attacher = VolumeAttacher(
        qmp_socket=qmp, nbd_socket=nbd, pool=pool, run_dir=folder / "run", write_through=write_through
    )
    try:
        await attacher.start()
        yield attacher
    finally:
        await attacher.close()
        daemon.terminate()
        await daemon.wait()


async def write_rate(backend: NbdBackend) -> float:
    """Writes per second that qemu-img bench gets from an export."""
    uri = f"nbd+unix:///{backend.export}?socket={backend.socket}"
    options = ("-f", "raw", "-w", "-c", str(WRITES), "-d", "8", "-s", "4096", "-S", str(STEP))
    began = time.monotonic()
    bench = await asyncio.create_subprocess_exec("qemu-img", "bench", *options, uri, stdout=subprocess.DEVNULL)
    if await bench.wait():
        raise SystemExit("qemu-img bench failed")
    return WRITES / (time.monotonic() - began)


async def clone_times(attacher: VolumeAttacher, rounds: int) -> list[float]:
    times = []
    for number in range(rounds):
        began = time.monotonic()
        await attacher.create_volume(f"clone-{number}", image="bench")
        times.append(time.monotonic() - began)
    return times


async def write_rates(attachers: dict[str, VolumeAttacher], rounds: int) -> dict[str, dict[str, float]]:
    rates: dict[str, dict[str, list[float]]] = {mode: {"new": [], "again": []} for mode in attachers}
    for number in range(rounds):
        for mode, attacher in attachers.items():
            name = f"{mode.replace('_', '-')}-{number}"
            await attacher.create_volume(name, size_bytes=IMAGE_BYTES)
            backend = await attacher.export_volume(name, name, read_only=False)
            for kind in ("new", "again"):
                rates[mode][kind].append(await write_rate(backend))
            await attacher.unexport(name)
            await attacher.delete_volume(name)
    return {mode: {kind: round(statistics.median(r)) for kind, r in kinds.items()} for mode, kinds in rates.items()}


def prepare(folder: Path) -> tuple[FilePool, float]:
    """A pool with a full 2 GiB image, and the seconds that copying the image takes (until it is on disk)."""
    pool = FilePool(folder / "pool")
    source = folder / "source.raw"
    with open(source, "wb") as file:
        for number in range(IMAGE_BYTES >> 20):
            file.write(number.to_bytes(8, "big") * (1 << 17))
    pool.add_image("bench", source)
    began = time.monotonic()
    subprocess.run(["cp", "--sparse=never", "--reflink=never", source, folder / "copy.raw"], check=True)
    subprocess.run(["sync", folder / "copy.raw"], check=True)
    copy_s = time.monotonic() - began
    (folder / "copy.raw").unlink()
    return pool, copy_s


async def run(folder: Path, rounds: int) -> dict[str, object]:
    pool, copy_s = prepare(folder)
    async with (
        serving(folder / "t", pool, write_through=True) as through,
        serving(folder / "b", pool, write_through=False) as back,
    ):
        times = await clone_times(through, rounds)
        rates = await write_rates({"write_through": through, "write_back": back}, rounds)
    return {
        "rounds": rounds,
        "clone_2gib_median_s": round(statistics.median(times), 4),
        "clone_2gib_max_s": round(max(times), 4),
        "full_copy_2gib_s": round(copy_s, 2),
        "copy_over_clone": round(copy_s / statistics.median(times), 1),
        "write_iops_4k_qd8": rates,
        "write_through_over_write_back": {
            kind: round(rates["write_through"][kind] / rates["write_back"][kind], 3) for kind in ("new", "again")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--dir", default="/tmp", help="folder to work in (a short path: it holds unix sockets)")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="ob-", dir=arguments.dir))
    try:
        report = json.dumps(asyncio.run(run(folder, arguments.rounds)), indent=2)
    finally:
        shutil.rmtree(folder)
    print(report)
    if arguments.out is not None:
        arguments.out.write_text(report + "\n")


if __name__ == "__main__":
    main()
