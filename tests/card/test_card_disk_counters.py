"""Any card tells what its host did to its disks: firmware alone already reads them."""

import asyncio


async def test_reads_of_the_host_are_counted(bench):
    assert await bench.card.disk_counters() == {}
    await bench.card.plug_disk("d-1", bench.backends[0], serial="SERIAL1", boot=True)
    assert (await bench.card.disk_counters())["d-1"].bytes_read == 0
    await bench.power_on()
    async with asyncio.timeout(60):
        while (await bench.card.disk_counters())["d-1"].bytes_read == 0:  # noqa: ASYNC110 (a counter has no event)
            await asyncio.sleep(0.2)
    assert (await bench.card.disk_counters())["d-1"].bytes_written == 0
