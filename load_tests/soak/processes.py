"""Runs the service and its Redis as child processes."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import IO

import aiohttp
import psutil

START_TIMEOUT_S = 300
# A small local cache fills soon, so later growth is a leak.
SETTINGS = {
    "NOTEGRADE_LOCAL_CACHE_PAIRS": "500",
    "NOTEGRADE_CACHE_TTL_S": "120",
    "NOTEGRADE_ENGINE_KV_CACHE_GIB": "1",
    # High enough that bursts do not switch explanation mode off.
    "NOTEGRADE_GUARD_P99_MS": "30000",
    "NOTEGRADE_GUARD_BACKLOG_SHARE": "1",
    "NOTEGRADE_BREAKER_OPEN_S": "1",
    "NOTEGRADE_REQUEST_HEAD_TIMEOUT_S": "2",
    "NOTEGRADE_RESPONSE_TIMEOUT_S": "2",
    "NOTEGRADE_EXPLANATION_KEPT_S": "60",
    "NOTEGRADE_EXPLANATION_KEPT_REQUESTS": "50",
}


def free_port() -> int:
    """Find a free port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Redis:
    """A Redis server that can be killed, suspended, and restarted empty on the same port."""

    def __init__(self, binary: str) -> None:
        self._binary = binary
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start the server without waiting until it is ready; the service has to cope with that."""
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self._process = subprocess.Popen([self._binary, *options], stdout=subprocess.DEVNULL)

    def kill(self) -> None:
        """Kill the server, as a crash does."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def suspend(self) -> None:
        """Suspend the server: connections stay open and nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Resume after `suspend`."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process:
            self._process.send_signal(number)


class Service:
    """`notegrade serve` on a checkpoint, and its use of memory and files."""

    def __init__(self, command: str, checkpoint: str, redis: Redis, log: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._redis = redis
        self._log: IO[bytes] = log.open("wb")
        self._process = subprocess.Popen(
            [command, "serve", "--port", str(self.port), "--checkpoint", checkpoint],
            env={**os.environ, **SETTINGS, "NOTEGRADE_REDIS_URL": redis.url, "NOTEGRADE_LOG_FORMAT": "json"},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        self._seen = psutil.Process(self._process.pid)

    @property
    def pid(self) -> int:
        """The process that answers HTTP."""
        return self._process.pid

    def has_ended(self) -> bool:
        """Return whether the process has ended."""
        return self._process.poll() is not None

    def suspend_engine(self) -> None:
        """Suspend vLLM's engine core, which then hangs as on a machine out of memory."""
        self._engine_core().suspend()

    def resume_engine(self) -> None:
        """Resume after `suspend_engine`."""
        self._engine_core().resume()

    def _engine_core(self) -> psutil.Process:
        children = self._seen.children(recursive=True)
        [core] = [
            child
            for child in children
            if any("EngineCore" in part for part in (child.name(), *child.cmdline()))
        ]
        return core

    def rss_mib(self) -> tuple[float, float]:
        """Return the resident memory of the HTTP process, and of its children (the engine core)."""
        children = sum(child.memory_info().rss for child in self._seen.children(recursive=True))
        return self._seen.memory_info().rss / 2**20, children / 2**20

    def open_files(self) -> tuple[int, int]:
        """Count the file descriptors to Redis, up to the size of the pools, and all others.

        A socket that its peer has closed and reset is in no table of connections. It counts as one to Redis: a pool keeps
        connections to a killed server until their next use, and asyncio closes all others.
        """
        peers = {c.fd: getattr(c.raddr, "port", None) for c in self._seen.net_connections("all")}
        files = self._files()
        to_redis = sum(
            file.startswith("socket:") and peers.get(number, self._redis.port) == self._redis.port
            for number, file in files.items()
        )
        return to_redis, len(files) - to_redis

    def _files(self) -> dict[int, str]:
        files = {}
        for link in Path(f"/proc/{self._process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # just closed
                files[int(link.name)] = str(link.readlink())
        return files

    def terminate(self) -> int:
        """Stop the service, and return its exit code."""
        self._process.terminate()
        return self._process.wait(60)

    def kill(self) -> None:
        """Kill the service if it has not ended."""
        self._process.kill()
        self._process.wait()
        self._log.close()


async def wait_for_start(session: aiohttp.ClientSession, service: Service) -> None:
    """Wait until the service is ready. Raises RuntimeError when it ends, TimeoutError when it takes too long."""
    async with asyncio.timeout(START_TIMEOUT_S):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"{service.url}/readyz") as response:
                    if response.status == 200:
                        return
            if service.has_ended():
                raise RuntimeError("the service ended while starting: see its log")
            await asyncio.sleep(0.5)
