"""Running the service: its socket, its signals, and its end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from types import FrameType

import uvicorn

from eao.errors import ServingError
from eao.retrieval.index import Index
from eao.serve.logs import event, log, set_up_logs
from eao.serve.settings import Settings

_BACKLOG = 1024
_IDLE = 10  # seconds that a connection without a request is kept
_CLOSING = 5  # seconds that connections get to close after the drain


def serve(index: Index, settings: Settings, on_ready: Callable[[str], object] | None = None) -> None:
    """Serve until a signal says to stop; then finish what was accepted.

    At the first SIGTERM or SIGINT new requests are refused with 503, and those that were accepted are finished, for
    `settings.grace` seconds at most. A second signal ends it at once.

    Args:
        index: to search; its model is loaded here.
        settings: of the service.
        on_ready: called with its address when it answers.

    Raises:
        ServingError: the address is taken, or is none of this machine's.
        EaoError: the model cannot be loaded.
    """
    set_up_logs(settings.log_format)
    with open_socket(settings) as listener:
        asyncio.run(_serve(index, settings, listener, on_ready))


def open_socket(settings: Settings) -> socket.socket:
    """The socket it listens on.

    Raises:
        ServingError: it cannot be opened.
    """
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise ServingError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}",
            "choose another --port (0: any that is free), or an address of this machine as --host",
        ) from None
    return listener


def address_of(listener: socket.socket) -> str:
    """The URL of what a socket serves."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _serve(
    index: Index, settings: Settings, listener: socket.socket, on_ready: Callable[[str], object] | None
) -> None:
    from eao.serve.app import create_app
    from eao.serve.metrics import Metrics
    from eao.serve.service import Service

    if not settings.is_local and not settings.api_key:
        log.warning("everybody who reaches this address can search and watch: give --api-key-file")
    async with Service(index, settings, Metrics()) as service:
        frame = create_app(service)
        config = uvicorn.Config(
            frame,
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_IDLE,
            timeout_graceful_shutdown=_CLOSING,
        )
        server = _Server(config, lambda: frame.drain(settings.grace))
        frame.connections = lambda: len(server.server_state.connections)
        running = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started and not running.done():
            await asyncio.sleep(0.01)
        if server.started:
            url = address_of(listener)
            event("ready", url=url, clips=service.catalog.latest.clips, model=service.embedder.model_hash[:12])
            if on_ready is not None:
                on_ready(url)
        await running
        event("stopped")


class _Server(uvicorn.Server):
    """Uvicorn, which at a signal drains before it closes its socket, and ends without the signal's exit code."""

    def __init__(self, config: uvicorn.Config, drain: Callable[[], Awaitable[bool]]) -> None:
        super().__init__(config)
        self._drain = drain
        self._told = False
        self._stopping: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by the signal: the first one drains, another ends the server at once."""
        if self._told:
            self.should_exit = self.force_exit = True
            return
        self._told = True
        self._loop.call_soon_threadsafe(self._begin_to_stop)

    def _begin_to_stop(self) -> None:
        event("draining")
        self._stopping = self._loop.create_task(self._stop())

    async def _stop(self) -> None:
        if not await self._drain():
            log.warning("not all requests were finished in time")
        self.should_exit = True
