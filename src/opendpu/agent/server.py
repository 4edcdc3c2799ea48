"""The agent's door: gRPC over mutual TLS."""

import grpc

from opendpu.agent.agent import Agent
from opendpu.agent.config import TlsConfig
from opendpu.agent.interceptor import CallInterceptor
from opendpu.agent.rpc import MAX_MESSAGE_BYTES
from opendpu.agent.services import add_services
from opendpu.agent.tls import server_credentials
from opendpu.errors import UnavailableError

_STOP_S = 3.0
# More calls and watches than any control plane makes; beyond it callers get RESOURCE_EXHAUSTED at once.
_MAX_CALLS = 512
_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 8 << 10),
    ("grpc.so_reuseport", 0),  # a second agent on the same port must fail, not share it
    # A watcher that vanished without a word is noticed within 80 s; an idle one costs one ping a minute.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 5),
)


class AgentServer:
    """Serves a started agent on `listen` ("host:port", port 0: any free one)."""

    def __init__(self, agent: Agent, *, listen: str, tls: TlsConfig) -> None:
        self._agent = agent
        self._listen = listen
        self._credentials = server_credentials(tls)
        self._server: grpc.aio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        """Raises UnavailableError when the address can't be listened on."""
        server = grpc.aio.server(interceptors=[CallInterceptor()], options=_OPTIONS, maximum_concurrent_rpcs=_MAX_CALLS)
        add_services(server, self._agent)
        try:
            self.port = server.add_secure_port(self._listen, self._credentials)
        except RuntimeError as error:
            raise UnavailableError(
                f"can't listen on {self._listen}: {error}; is another agent running, is the address on this machine?"
            ) from None
        await server.start()
        self._server = server

    async def close(self) -> None:
        """Take no new calls, let those that run end, end the watches."""
        if self._server is not None:
            for hub in (self._agent.interfaces.hub, self._agent.disks.hub, self._agent.server.hub):
                hub.close()
            await self._server.stop(_STOP_S)
            self._server = None
