"""Running the server: one address, and an end that finishes what was begun."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import uvicorn

from qformats.chatting.loaded import ChatModel
from qformats.errors import OutputError
from qformats.serving.app import Limits, make_app

__all__ = ["is_loopback", "serve"]

_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
_CONNECTIONS = 1024


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone.

    Examples
    --------
    >>> from qformats.serving.server import is_loopback
    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def serve(
    models: Mapping[str, ChatModel],
    *,
    host: str,
    port: int,
    api_key: str | None,
    origins: Sequence[str],
    limits: Limits,
    grace: float,
    started: Callable[[str], None],
) -> None:
    """Serve models until SIGINT or SIGTERM; a second one does not wait for answers in work.

    Parameters
    ----------
    models : mapping of str to ChatModel
        By the names that clients know them by.
    host, port : str, int
        Where to listen; port 0 for any that is free.
    api_key, origins, limits
        As for :func:`qformats.serving.app.make_app`.
    grace : float
        Seconds that answers in work may take at the end.
    started : callable
        Is told the address once it answers.

    Raises
    ------
    OutputError
        If the address is taken, or is none of this machine.
    """
    listening = _listening(host, port)
    name, number = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    hosts = frozenset({*_LOCAL, host.strip("[]"), name}) if is_loopback(host) else None
    app = make_app(models, api_key=api_key, hosts=hosts, origins=origins, limits=limits)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=int(grace) + 5,
        # Nothing but HTTP is spoken here.
        ws="none",
        lifespan="off",
    )
    server = _Server(config, models, grace, lambda: started(f"http://{shown}:{number}"))
    with listening:
        server.run([listening])


def _listening(host: str, port: int) -> socket.socket:
    try:
        kind, *_, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(kind, socket.SOCK_STREAM)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
        except OSError:
            found.close()
            raise
    except OSError as error:
        told = error.strerror or str(error)
        raise OutputError(
            f"{host}:{port}", f"cannot be listened at ({told})", "Choose another --port"
        ) from error
    return found


class _Server(uvicorn.Server):
    """Ends in order: no new requests, those in work are finished, and the rest is told."""

    def __init__(
        self,
        config: uvicorn.Config,
        models: Mapping[str, ChatModel],
        grace: float,
        started: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._models, self._grace, self._told = models, grace, started
        self._closing: list[asyncio.Future[None]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        if self.started:
            self._told()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take signals for the end of the server, not of the program."""
        before = {
            number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what was begun, for a while."""
        grace = 0.0 if self.force_exit else self._grace
        closing = [asyncio.to_thread(model.close, grace) for model in self._models.values()]
        ending = asyncio.gather(*closing)
        await super().shutdown(sockets)
        if self.force_exit:
            for model in self._models.values():
                await asyncio.to_thread(model.close)
        await ending

    def handle_exit(self, sig: int, frame: Any) -> None:
        """End; the second time, at once."""
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True
