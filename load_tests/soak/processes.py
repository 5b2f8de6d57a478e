"""Runs the service and its Redis as child processes, and reads the service's use of memory and files."""

import contextlib
import subprocess
from pathlib import Path
from typing import Self

import psutil

from load_tests.processes import find_engine_core, find_redis, free_port

REDIS = find_redis() or "redis-server"
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
    "NOTEGRADE_LOG_FORMAT": "json",
}


class Redis:
    """A Redis server that can be killed, suspended, and restarted empty on the same port."""

    def __init__(self, binary: str) -> None:
        self._binary = binary
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start the server without waiting until it is ready; the service has to cope with that."""
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self.process = psutil.Popen([self._binary, *options], stdout=subprocess.DEVNULL)

    def kill(self) -> None:
        """Kill the server, as a crash does."""
        self.process.kill()
        self.process.wait()


class ServiceProcess:
    """The process that answers HTTP, and its engine core."""

    def __init__(self, pid: int, redis_port: int) -> None:
        self._process = psutil.Process(pid)
        self._redis_port = redis_port

    def engine_core(self) -> psutil.Process:
        """Return vLLM's engine core. Suspended, it hangs as on a machine out of memory."""
        return find_engine_core(self._process.pid)

    def rss_mib(self) -> tuple[float, float]:
        """Return the resident memory of the HTTP process, and of its children (the engine core)."""
        children = sum(child.memory_info().rss for child in self._process.children(recursive=True))
        return self._process.memory_info().rss / 2**20, children / 2**20

    def open_files(self) -> tuple[int, int]:
        """Count the file descriptors to Redis, up to the size of the pools, and all others.

        A socket that its peer has closed and reset is in no table of connections. It counts as one to Redis: a pool keeps
        connections to a killed server until their next use, and asyncio closes all others.
        """
        peers = {c.fd: getattr(c.raddr, "port", None) for c in self._process.net_connections("all")}
        files = self._files()
        to_redis = sum(
            file.startswith("socket:") and peers.get(number, self._redis_port) == self._redis_port
            for number, file in files.items()
        )
        return to_redis, len(files) - to_redis

    def _files(self) -> dict[int, str]:
        files = {}
        for link in Path(f"/proc/{self._process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # just closed
                files[int(link.name)] = str(link.readlink())
        return files

    def terminate(self) -> int | None:
        """Stop the service, and return its exit code."""
        self._process.terminate()
        return self._process.wait(60)
