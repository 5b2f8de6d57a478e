"""uvicorn, stopped as balancers need it: red first, then serving on for a while, then nothing cut off."""

import asyncio
import contextlib
import errno
import logging
import resource
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

import uvicorn
from fastapi import FastAPI

from service.errors import ConfigurationError
from service.http.connections import Connection, ConnectionLimits
from service.stack import ScoringStack

logger = logging.getLogger(__name__)

# Longer than the clients' pools and balancers keep a connection: who closes first must not be us.
KEEP_ALIVE_S = 75
# For what is neither a client's connection nor to be counted: Redis, the engine's sockets, libraries' files.
FILES_OF_OUR_OWN = 256
# From the time when answers are due until connections are cut.
LAST_ANSWERS_S = 5.0


@dataclass(frozen=True, slots=True)
class StopTimes:
    """In seconds: how long to serve on after SIGTERM, then to wait for open requests; how long to stay with a lost engine."""

    drain_delay_s: float
    drain_timeout_s: float
    engine_lost_exit_s: float


class Server(uvicorn.Server):
    """Serves the application until it is told to stop or the engine is lost; `failed` tells which."""

    def __init__(self, app: FastAPI, stack: ScoringStack, limits: ConnectionLimits, times: StopTimes) -> None:
        config = uvicorn.Config(
            app,
            http=Connection.within(limits, stack.metrics.refused_connections),
            ws="none",
            log_config=None,
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=round(times.drain_timeout_s + LAST_ANSWERS_S),
        )
        super().__init__(config)
        stack.metrics.connections.set_function(lambda: len(self.server_state.connections))
        self.failed = False
        self._stack = stack
        self._times = times
        self._told_to_stop = False
        self._leave_at: float | None = None

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on what was bound, and serve until told to stop. Raises ConfigurationError where somebody else listens by now."""
        for listener in sockets or ():
            with _told_of_address(*listener.getsockname()[:2]):
                listener.listen(self.config.backlog)
        super().run(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's
        # In a signal handler, between any two bytecodes: marks are set here, `on_tick` acts on them. They are not
        # kept for uvicorn to raise once more in the end: to have stopped as told is a success.
        if sig == signal.SIGTERM and not self._told_to_stop:
            self._told_to_stop = True
        else:
            self.force_exit = self.should_exit and sig == signal.SIGINT
            self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        if self._told_to_stop and self._stack.readiness.reason != "draining":
            self._drain()
        elif self._stack.readiness.reason == "engine_lost" and self._leave_at is None:
            self.failed = True
            self._leave_at = time.monotonic() + self._times.engine_lost_exit_s
            logger.error("leaving soon, to be started again: the engine is lost")
        if self._leave_at is not None and time.monotonic() >= self._leave_at:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._stack.readiness.set("draining", "the service is stopping")
        ending = asyncio.create_task(self._end_work_in_time())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()
            await asyncio.gather(ending, return_exceptions=True)

    def _drain(self) -> None:
        # Only a service that was ready has anybody who must first hear that it no longer is.
        delay_s = self._times.drain_delay_s if self._stack.readiness.is_ready else 0.0
        self._leave_at = time.monotonic() + delay_s
        self._stack.readiness.set("draining", "the service is stopping")
        # Clients then open their next connection elsewhere, and none is left in use when the last ones are closed.
        self.config.encoded_headers.append((b"connection", b"close"))

    async def _end_work_in_time(self) -> None:
        await asyncio.sleep(self._times.drain_timeout_s)
        await self._stack.end_work()


def bind(host: str, port: int) -> socket.socket:
    """A socket for `Server.run` to listen on; until then, who connects is refused. Raises ConfigurationError when that can't be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    try:
        with _told_of_address(host, port):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((host, port))
    except ConfigurationError:
        listener.close()
        raise
    return listener


@contextlib.contextmanager
def _told_of_address(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = "something else listens there" if error.errno == errno.EADDRINUSE else error.strerror
        raise ConfigurationError(f"can't listen on {host}, port {port}: {why}") from error


def allow_open_files(connections: int) -> None:
    """Raise this process's soft limit as needed. Raises ConfigurationError when the hard one is too low."""
    needed = connections + FILES_OF_OUR_OWN
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ConfigurationError(
            f"{connections} connections need {needed} open files, {hard} are allowed: raise that (ulimit -n), "
            "or lower NOTEGRADE_MAX_CONNECTIONS"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
