"""`opendpu-agent`: the program on the SoC."""

import argparse
import asyncio
import logging
import signal
import sys
from pathlib import Path

from opendpu.agent import config as configuration
from opendpu.agent import log as logs
from opendpu.errors import OpenDPUError

log = logging.getLogger(__name__)

_EXAMPLES = """examples:
  opendpu-agent --config /etc/opendpu/agent.toml
  opendpu-agent --config /etc/opendpu/agent.toml --check        check the file and the certificates, start nothing
  opendpu-agent --config /etc/opendpu/agent.toml --log-level debug

SIGTERM stops it gracefully; the host keeps its NICs and disks. Logs are JSON lines on the standard error stream.
"""


def main() -> int:
    """Exit status: 0 stopped by a signal, 1 could not start (said on the standard error stream), 2 wrong usage."""
    parser = argparse.ArgumentParser(
        prog="opendpu-agent",
        description="Keeps a DPU's host supplied with the NICs and disks it should have.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="TOML file, mode 0600")
    parser.add_argument("--check", action="store_true", help="check the configuration and exit")
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    arguments = parser.parse_args()
    try:
        config = configuration.load(arguments.config)
        if arguments.check:
            from opendpu.agent.tls import server_credentials

            server_credentials(config.tls)
            return 0
        logs.setup(arguments.log_level)
        asyncio.run(run(config))
    except OpenDPUError as error:
        print(f"opendpu-agent: {error}", file=sys.stderr)  # noqa: T201 - for the person who started it
        return 1
    return 0


async def run(config: configuration.Config) -> None:
    """Serve until SIGTERM or SIGINT."""
    # The ovs package imports eventlet if it happens to be installed (19 MB); nothing here uses it.
    sys.modules.setdefault("eventlet", None)  # type: ignore[arg-type]
    from opendpu.agent.agent import Agent
    from opendpu.agent.server import AgentServer
    from opendpu.agent.store import Store
    from opendpu.card.factory import make_card
    from opendpu.network.binder import PortBinder
    from opendpu.network.underlay import Underlay
    from opendpu.storage.attacher import VolumeAttacher
    from opendpu.storage.pool import FilePool

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    under = config.underlay
    agent = Agent(
        card=make_card(config.card_driver, config.card),
        binder=PortBinder(ovsdb=config.network.ovsdb, bridge=config.network.bridge),
        attacher=VolumeAttacher(
            qmp_socket=config.storage.daemon,
            nbd_socket=config.storage.nbd,
            pool=FilePool(config.storage.pool),
            run_dir=config.state_dir / "config-drives",
        ),
        underlay=Underlay(bridge=under.bridge, address=under.address, mtu=under.mtu) if under else None,
        store=Store(config.state_dir / "agent.db"),
        interface_deadline_s=config.interface_deadline_s,
        disk_deadline_s=config.disk_deadline_s,
    )
    server = AgentServer(agent, listen=config.listen, tls=config.tls)
    await agent.start()
    try:
        await server.start()
        if config.metrics is not None:
            from opendpu.agent import metrics

            metrics.serve(*config.metrics)
        log.info("serving on %s", config.listen)
        await stop.wait()
        log.info("stopping")
    finally:
        await server.close()
        await agent.close()


if __name__ == "__main__":
    sys.exit(main())
