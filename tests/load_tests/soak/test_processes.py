"""Tests of the soak's measurements on a stub process that opens given files and sockets."""

import contextlib
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from load_tests.soak.processes import ServiceProcess

CONNECTIONS, FILES = 4, 3
# Starts an engine's process, opens connections and files, and says so.
SCRIPT = f"""
import os, signal, socket, subprocess, sys, time
engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "EngineCore"])
kept = [socket.create_connection(("127.0.0.1", int(sys.argv[1]))) for _ in range({CONNECTIONS})]
kept += [open(os.devnull) for _ in range({FILES})]
signal.signal(signal.SIGTERM, lambda *_: (engine.kill(), sys.exit(3)))
print("opened", flush=True)
time.sleep(600)
"""


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture
def process(listener: socket.socket) -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-c", SCRIPT, str(listener.getsockname()[1])]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"opened\n"
        yield process
        process.terminate()


@pytest.fixture
def service(process: "subprocess.Popen[bytes]", listener: socket.socket) -> ServiceProcess:
    return ServiceProcess(process.pid, listener.getsockname()[1])


def reset(connection: socket.socket) -> None:
    """Close the connection like a killed server: FIN and then a reset, so that /proc lists it no more."""
    connection.shutdown(socket.SHUT_WR)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_connections_to_redis_are_counted_separately_even_if_dead(
    service: ServiceProcess, listener: socket.socket
) -> None:
    with contextlib.ExitStack() as stack:
        accepted = [stack.enter_context(listener.accept()[0]) for _ in range(CONNECTIONS)]
        assert service.open_files() == (CONNECTIONS, 3 + FILES)  # and those of its input and output
        reset(accepted.pop())
        reset(accepted.pop())
        assert service.open_files() == (CONNECTIONS, 3 + FILES)


def test_engine_core_is_found(service: ServiceProcess, process: "subprocess.Popen[bytes]") -> None:
    assert [service.engine_core()] == psutil.Process(process.pid).children()


def test_exit_code_is_returned(service: ServiceProcess) -> None:
    assert service.terminate() == 3
