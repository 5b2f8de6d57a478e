"""Tests of the soak's measurements on a stub process that opens given files and sockets."""

import contextlib
import socket
import struct
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from load_tests.soak.processes import Redis, Service, free_port
from tests.waiting import wait_until

CONNECTIONS, FILES = 4, 3
# Starts an engine's process, opens connections and files, and says so in its log.
SCRIPT = f"""
import os, signal, socket, subprocess, sys, time
engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "EngineCore"])
port = int(os.environ["NOTEGRADE_REDIS_URL"].split(":")[2].split("/")[0])
kept = [socket.create_connection(("127.0.0.1", port)) for _ in range({CONNECTIONS})]
kept += [open(os.devnull) for _ in range({FILES})]
print("opened", flush=True)
signal.signal(signal.SIGTERM, lambda *_: (engine.kill(), sys.exit(3)))
time.sleep(600)
"""


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", free_port())) as listener:
        yield listener


@pytest.fixture
def service(listener: socket.socket, tmp_path: Path) -> Iterator[Service]:
    command = tmp_path / "command"
    command.write_text(f"#!{sys.executable}\n{textwrap.dedent(SCRIPT)}", encoding="utf-8")
    command.chmod(0o755)
    redis = Redis("never started")
    redis.port = listener.getsockname()[1]
    redis.url = f"redis://127.0.0.1:{redis.port}/0"
    log = tmp_path / "log"
    service = Service(str(command), "checkpoint", redis, log)
    try:
        wait_until(lambda: "opened" in log.read_text(encoding="utf-8"))
        yield service
    finally:
        if not service.has_ended():
            service.terminate()
        service.kill()


def reset(connection: socket.socket) -> None:
    """Close the connection like a killed server: FIN and then a reset, so that /proc lists it no more."""
    connection.shutdown(socket.SHUT_WR)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_connections_to_redis_are_counted_separately_even_if_dead(
    service: Service, listener: socket.socket
) -> None:
    with contextlib.ExitStack() as stack:
        accepted = [stack.enter_context(listener.accept()[0]) for _ in range(CONNECTIONS)]
        assert service.open_files() == (CONNECTIONS, 3 + FILES)  # and those of its input and output
        reset(accepted.pop())
        reset(accepted.pop())
        assert service.open_files() == (CONNECTIONS, 3 + FILES)


def test_engine_is_suspended_and_resumed(service: Service) -> None:
    [engine] = psutil.Process(service.pid).children()
    service.suspend_engine()
    wait_until(lambda: engine.status() == psutil.STATUS_STOPPED)
    service.resume_engine()
    wait_until(lambda: engine.status() != psutil.STATUS_STOPPED)
    assert not service.has_ended()


def test_exit_code_is_returned(service: Service) -> None:
    assert service.terminate() == 3
    assert service.has_ended()
