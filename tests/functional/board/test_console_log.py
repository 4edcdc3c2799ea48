"""The console's log: of one power-on, and bounded whatever the host prints."""

from opendpu.lab.board import CONSOLE_LOG_MAX


async def test_a_host_that_prints_on_fills_no_disk_and_lives(server):
    log = server.rack.console_log
    console = await server.boot()
    with log.open("ab") as file:  # as if the host had printed this much
        file.write(bytes(CONSOLE_LOG_MAX - file.tell() - 1000))
    await console.run("seq 1000 1300")
    assert log.stat().st_size == CONSOLE_LOG_MAX
    assert await console.run("echo still here") == "still here"
    console.close()

    await server.power.cycle()
    assert log.stat().st_size < CONSOLE_LOG_MAX // 2
