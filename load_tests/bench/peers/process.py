"""Servers as processes: started, waited for, and ended with everything that they started."""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import psutil

from load_tests.bench.peer import Running

# vLLM compiles the model at its first start, which took 82 s for 135M weights on two cores.
START_TIMEOUT_S = 600.0
_STOP_TIMEOUT_S = 20.0
_POLL_S = 0.1
_LOG_TAIL_LINES = 12


class Unavailable(Exception):
    """This peer can't be measured here. The first line of the message says why; the rest, if any, is the end of its log."""


@dataclass(frozen=True, slots=True)
class Server:
    """What to start, and the address of 127.0.0.1 that answers 200 once it is ready."""

    command: Sequence[str]
    environment: Mapping[str, str]
    port: int
    health_path: str = "/health"
    timeout_s: float = START_TIMEOUT_S


@contextlib.contextmanager
def run_server(server: Server) -> Iterator[Running]:
    """Start it in a folder of its own, wait until it is ready, and end it with all its processes after the block.

    What the block raises carries the end of the server's log as a note.
    Raises Unavailable when it ends before it is ready, or is not ready in time.
    """
    with tempfile.TemporaryDirectory(prefix="notegrade-bench-") as folder:
        log = Path(folder) / "log"
        started = time.monotonic()
        process = _start_tied(server, log)
        try:
            _wait_until_ready(process, server, log)
            ready_s = time.monotonic() - started
            with _told_of(log):
                yield Running(f"http://127.0.0.1:{server.port}", process.pid, ready_s)
        finally:
            _end_tree(process)


def _start_tied(server: Server, log: Path) -> "subprocess.Popen[bytes]":
    # In a group of its own that can't outlive this process, not even by SIGKILL: a watcher in the group reads a pipe
    # that closes with this end, and then kills them all. As in model_export/checkpoint/vllm_server.py, which imports torch.
    watch = 'exec 3<&0; { read -r _ <&3; kill -KILL 0; } & exec "$@" 3<&- </dev/null'
    with log.open("wb") as output:
        return subprocess.Popen(
            ["/bin/sh", "-c", watch, "sh", *server.command],
            cwd=log.parent,
            env=dict(server.environment),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


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
def _told_of(log: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # The log goes with its folder, and it may be the server that failed.
        error.add_note(_with_log("the server's log", log))
        raise


def _with_log(what: str, log: Path) -> str:
    # The last line stands in the first one, which is all that a table has room for: there, Python names its exception.
    lines = log.read_text(encoding="utf-8", errors="replace").rstrip().splitlines() or ["it wrote nothing"]
    return "\n".join([f"{what}: {lines[-1].strip()}", *lines[-_LOG_TAIL_LINES:]])


def _end_tree(process: "subprocess.Popen[bytes]") -> None:
    # Asked for first: once their parent is gone, nothing tells whose those in other groups were.
    tree = _descendants(process.pid)
    _signal_group(process.pid, signal.SIGTERM)
    # One that stands still ends when it goes on.
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
        # Whoever adopts an orphan may leave it a zombie: in a container, often nobody reaps them.
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)
