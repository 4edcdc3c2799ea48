"""Which DPU a command talks to: a server of the lab, or any agent by its address and the caller's certificate."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from opendpu.agent.client import AgentClient
from opendpu.lab.layout import DEFAULT_NAME, Layout

if TYPE_CHECKING:
    from opendpu.lab.lab import Lab


def agent_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that `connect` takes."""
    for option in reversed(
        [
            click.option("--server", help="A server of the lab, e.g. server1."),
            click.option("--lab", "lab_name", default=DEFAULT_NAME, show_default=True, help="Name of the lab."),
            click.option("--agent", envvar="OPENDPU_AGENT", help="HOST:PORT of an agent outside the lab."),
            click.option("--ca", envvar="OPENDPU_CA", help="CA certificate (PEM) the agent's is checked with."),
            click.option("--certificate", envvar="OPENDPU_CERTIFICATE", help="Your certificate (PEM), with your role."),
            click.option("--key", envvar="OPENDPU_KEY", help="Its private key (PEM)."),
        ]
    ):
        command = option(command)
    return command


def connect(**options: Any) -> AgentClient:
    """A client for what the options of `agent_options` name."""
    if options["agent"]:
        missing = [name for name in ("ca", "certificate", "key") if not options[name]]
        if missing:
            raise click.UsageError(f"--agent needs --{' and --'.join(missing)} too (mutual TLS)")
        return AgentClient(options["agent"], ca=options["ca"], certificate=options["certificate"], key=options["key"])
    if not options["server"]:
        raise click.UsageError("name a server of the lab with --server server1, or an agent with --agent HOST:PORT")
    lab = open_lab(options["lab_name"])
    lab.enter_management()
    return lab.agent(lab.server(options["server"]))


def open_lab(name: str) -> "Lab":
    """The running lab of that name."""
    from opendpu.lab.lab import Lab

    return Lab(Layout.find(name))
