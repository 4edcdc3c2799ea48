"""What a host wrote survives `kill -9` of the storage daemon, flushed or not.

The trap: a write is acknowledged but not flushed; the daemon dies and comes back; the host's disk reconnects by itself
and its next flush succeeds. The host now rightly believes that the write is on disk.
"""

import asyncio
import hashlib
import random
import threading

import pytest

from opendpu.storage.attacher import VolumeAttacher

BLOCK = 4096
SIZE = 64 << 20


async def _killed_after_writes(attacher: VolumeAttacher, daemon, reconnect, changes) -> int:
    """Write blocks into unallocated clusters, kill, restart, flush; return how many acknowledged blocks are lost."""
    await attacher.create_volume("v", size_bytes=SIZE)
    backend = await attacher.export_volume("d", "v", read_only=False)
    blocks = {offset: random.Random(offset).randbytes(BLOCK) for offset in range(0, SIZE, 1 << 20)}
    disk = reconnect(backend, 10)
    for offset, block in blocks.items():
        disk.write(offset, block)
    while not changes.empty():
        changes.get_nowait()
    daemon.kill()
    disk.close()
    await asyncio.wait_for(changes.get(), 10)
    daemon.start()
    await asyncio.wait_for(changes.get(), 10)
    backend = await attacher.export_volume("d", "v", read_only=False)
    with reconnect(backend, 10) as disk:
        disk.flush()
        return sum(disk.read(offset, BLOCK) != block for offset, block in blocks.items())


async def test_acknowledged_writes_survive(attacher, daemon, reconnect, changes):
    assert await _killed_after_writes(attacher, daemon, reconnect, changes) == 0


async def test_write_back_would_lose_them(daemon, make_attacher, reconnect):
    """Why `write_through` is the default, and proof that the test above can fail."""
    attacher = await make_attacher(daemon, write_through=False)
    changes: asyncio.Queue[None] = asyncio.Queue()
    attacher.subscribe(lambda: changes.put_nowait(None))
    lost = await _killed_after_writes(attacher, daemon, reconnect, changes)
    print(f"write-back: {lost} of {SIZE >> 20} acknowledged blocks lost")
    assert lost > 0


class Host(threading.Thread):
    """A host that writes all the time and repeats, after reconnecting, what was not acknowledged."""

    def __init__(self, backend, reconnect) -> None:
        super().__init__(daemon=True)
        self.backend, self.reconnect = backend, reconnect
        self.model = bytearray(SIZE)
        self.written = self.reconnects = 0
        self.stopping = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            chance = random.Random(7)
            disk = self.reconnect(self.backend, 20)
            while not self.stopping.is_set():
                offset = chance.randrange(SIZE // BLOCK) * BLOCK
                block = chance.randbytes(BLOCK)
                while True:
                    try:
                        disk.write(offset, block)
                        if self.written % 50 == 0:
                            disk.flush()
                        break
                    except ConnectionError:
                        disk.close()
                        self.reconnects += 1
                        disk = self.reconnect(self.backend, 20)
                self.model[offset : offset + BLOCK] = block
                self.written += 1
            disk.close()
        except BaseException as error:
            self.error = error


@pytest.mark.timeout(120)
async def test_kills_under_load(attacher, daemon, pool, reconnect, changes, check_qcow2, flat):
    await attacher.create_volume("v", size_bytes=SIZE)

    async def serve() -> None:
        """What the agent does: export again whenever the daemon changed."""
        while True:
            await attacher.export_volume("d", "v", read_only=False)
            await changes.get()

    backend = await attacher.export_volume("d", "v", read_only=False)
    agent = asyncio.create_task(serve())
    host = Host(backend, reconnect)
    host.start()
    for _ in range(4):
        before = host.written
        async with asyncio.timeout(20):
            while host.written < before + 60 and host.error is None:  # noqa: ASYNC110 (a thread's counter)
                await asyncio.sleep(0.02)
        daemon.kill()
        daemon.start()
    await asyncio.sleep(0.5)
    host.stopping.set()
    await asyncio.to_thread(host.join, 30)
    assert host.error is None, host.error
    assert not host.is_alive()
    agent.cancel()
    with reconnect(backend, 10) as disk:
        disk.flush()
        assert disk.sha256() == hashlib.sha256(host.model).hexdigest()
    await attacher.unexport("d")
    assert flat(pool.volume_path("v")) == bytes(host.model)
    check_qcow2(pool.volume_path("v"))
    assert host.reconnects >= 4
    print(f"{host.written} writes, {host.reconnects} reconnects, nothing lost")
