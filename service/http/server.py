"""Run uvicorn, and stop it as load balancers need: fail readiness, serve on for a while, then end without cutting a request off."""

import asyncio
import contextlib
import errno
import logging
import resource
import signal
import socket
import time
from collections.abc import Iterator
from types import FrameType

import uvicorn
from fastapi import FastAPI
from pydantic import Field

from service.errors import ConfigurationError
from service.http.answering import Backend
from service.http.connections import Connection, ConnectionLimits
from service.observability.background import cancel_and_wait

logger = logging.getLogger(__name__)

# Longer than clients' pools and balancers keep an idle connection: the service must not be the first to close it.
KEEP_ALIVE_S = 75
# Open files other than clients' connections: Redis, the engine's sockets, libraries' files.
RESERVED_FILES = 256
# How long the last answers may take to be sent after the drain has ended.
LAST_ANSWERS_S = 5.0


class ServerOptions(ConnectionLimits):
    """The settings of the server: limits of its connections, and how it stops."""

    drain_delay_s: float = Field(
        5.0,
        ge=0,
        description="How long the service still serves after SIGTERM, with `/readyz` at 503, so that load balancers stop sending to it first",
    )
    drain_timeout_s: float = Field(
        15.0,
        ge=0,
        description="Longest wait after that for open requests; pairs that are not scored by then fail",
    )
    engine_lost_exit_s: float = Field(
        10.0,
        ge=0,
        description="How long the service stays up, not ready, after its engine is lost; then it exits with 1, to be restarted",
    )


class Server(uvicorn.Server):
    """Serves the application until it is stopped or the engine is lost; `failed` says whether the engine was lost."""

    def __init__(self, app: FastAPI, backend: Backend, options: ServerOptions) -> None:
        config = uvicorn.Config(
            app,
            http=Connection.within(options, backend.metrics.refused_connections),
            ws="none",
            log_config=None,
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=round(options.drain_timeout_s + LAST_ANSWERS_S),
        )
        super().__init__(config)
        backend.metrics.connections.set_function(lambda: len(self.server_state.connections))
        self.failed = False
        self._backend = backend
        self._options = options
        self._stop_requested = False
        self._exit_at: float | None = None

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on bound sockets and serve until stopped. Raises ConfigurationError if another process listens there by now."""
        for listener in sockets or ():
            with _listen_errors(*listener.getsockname()[:2]):
                listener.listen(self.config.backlog)
        super().run(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        # A signal handler runs between any two bytecodes: it only sets fields, and `on_tick` acts on them. The signals
        # are not kept for uvicorn to raise again at the end: to stop when asked to is a success.
        if sig == signal.SIGTERM and not self._stop_requested:
            self._stop_requested = True
        else:
            self.force_exit = self.should_exit and sig == signal.SIGINT
            self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        reason = self._backend.readiness.reason
        if self._stop_requested and reason != "draining":
            self._begin_draining()
        elif reason == "engine_lost" and self._exit_at is None:
            self.failed = True
            self._exit_at = time.monotonic() + self._options.engine_lost_exit_s
            logger.error("the engine is lost: the service will exit, to be restarted")
        if self._exit_at is not None and time.monotonic() >= self._exit_at:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._backend.readiness.set("draining", "the service is stopping")
        ending = asyncio.create_task(self._end_work_after_timeout())
        try:
            await super().shutdown(sockets)
        finally:
            await cancel_and_wait(ending)

    def _begin_draining(self) -> None:
        # Load balancers send requests only to a service that was ready: any other can stop at once.
        delay_s = self._options.drain_delay_s if self._backend.readiness.is_ready else 0.0
        self._exit_at = time.monotonic() + delay_s
        self._backend.readiness.set("draining", "the service is stopping")
        # Clients then open their next connection elsewhere, so that none is in use when the last ones are closed.
        self.config.encoded_headers.append((b"connection", b"close"))

    async def _end_work_after_timeout(self) -> None:
        await asyncio.sleep(self._options.drain_timeout_s)
        await self._backend.end_work()


def bind(host: str, port: int) -> socket.socket:
    """Bind a socket for `Server.run` to listen on; connections are refused until then. Raises ConfigurationError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    try:
        with _listen_errors(host, port):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((host, port))
    except ConfigurationError:
        listener.close()
        raise
    return listener


@contextlib.contextmanager
def _listen_errors(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = "something else listens there" if error.errno == errno.EADDRINUSE else error.strerror
        raise ConfigurationError(f"can't listen on {host}, port {port}: {why}") from error


def allow_open_files(connections: int) -> None:
    """Raise this process's soft limit on open files as needed. Raises ConfigurationError if the hard limit is too low."""
    needed = connections + RESERVED_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ConfigurationError(
            f"{connections} connections need {needed} open files, {hard} are allowed: raise that (ulimit -n), "
            "or lower NOTEGRADE_MAX_CONNECTIONS"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
