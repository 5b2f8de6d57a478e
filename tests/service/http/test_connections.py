"""Connections have limits, tested over real sockets: no client can harm others by the way it sends and reads."""

import json
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import httpx
import pytest

from service.contract.checkpoint import Checkpoint
from service.http.auth import hash_key
from tests.served import Served, served
from tests.waiting import wait_until

PATIENT: dict[str, Any] = {
    "max_connections": 40,
    "max_head_bytes": 10_000,
    "request_head_timeout_s": 60,
    "response_timeout_s": 60,
}
# Only for the tests of these timeouts: on a busy machine, a healthy request may take a second.
IMPATIENT: dict[str, Any] = {**PATIENT, "request_head_timeout_s": 1.0, "response_timeout_s": 1.0}
HEAD = b"POST /score HTTP/1.1\r\nHost: x\r\n"
BODY = json.dumps({"query": "quiet cafes", "notes": [{"id": "n", "body": "A quiet cafe."}]}).encode()
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY


kept_or_closed = pytest.mark.parametrize(
    "last", [b"", b"Connection: close\r\n"], ids=["kept", "to-be-closed"]
)


@pytest.fixture
def service(checkpoint: Checkpoint) -> Iterator[Served]:
    with served(checkpoint, **PATIENT) as service:
        yield service


@pytest.fixture
def impatient(checkpoint: Checkpoint) -> Iterator[Served]:
    with served(checkpoint, **IMPATIENT) as service:
        yield service


@contextmanager
def connected(service: Served) -> Iterator[socket.socket]:
    with socket.create_connection(service.address, timeout=20) as connection:
        yield connection


def read_all(connection: socket.socket) -> bytes:
    """Read until the service closes the connection."""
    received = b""
    while chunk := connection.recv(65_536):
        received += chunk
    return received


def problem(answer: bytes) -> tuple[int, dict[str, Any]]:
    """Return the status and the body of an answer, which must be a problem and close the connection."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    assert b"connection: close" in head.lower()
    return int(head.split()[1]), json.loads(body)


def is_served(service: Served) -> bool:
    return httpx.post(f"{service.url}/score", content=BODY, timeout=20).status_code == 200


def test_a_header_that_never_ends_is_refused_once_it_is_too_large(service: Served) -> None:
    with connected(service) as connection:
        connection.sendall(HEAD + b"X: ")
        for _ in range(20):
            time.sleep(0.01)  # so that they arrive separately
            connection.sendall(b"a" * 1_000)
        assert problem(read_all(connection))[0] == 431


def test_a_head_within_the_limit_may_come_in_pieces(service: Served) -> None:
    with connected(service) as connection:
        connection.sendall(HEAD + b"Connection: close\r\n")
        for start in range(0, 8_000, 1_000):
            time.sleep(0.01)
            connection.sendall(b"X-%d: " % start + b"a" * 990 + b"\r\n")
        connection.sendall(b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY)
        assert read_all(connection).startswith(b"HTTP/1.1 200 ")


def test_slow_heads_time_out_and_do_not_delay_others(impatient: Served) -> None:
    with ExitStack() as stack:
        slow = [stack.enter_context(connected(impatient)) for _ in range(30)]
        for connection in slow:
            connection.sendall(b"POST /score HT")
        stopped = time.monotonic() + 60  # longer than the test waits: only the limit ends it

        def trickle(connection: socket.socket) -> bytes:
            while time.monotonic() < stopped:
                try:
                    connection.sendall(b"T")
                except ConnectionError:
                    break
                time.sleep(0.2)
            return read_all(connection)

        with ThreadPoolExecutor(30) as pool:
            trickling = [pool.submit(trickle, connection) for connection in slow]
            # Meanwhile the other clients are served.
            assert all(is_served(impatient) for _ in range(20))
            wait_until(lambda: not impatient.server.server_state.connections, within_s=20)
            for each in trickling:
                each.cancel()


@pytest.mark.parametrize("before", [b"", WHOLE], ids=["first", "second"])
def test_a_slow_head_is_answered_with_a_problem(impatient: Served, before: bytes) -> None:
    with connected(impatient) as connection:
        if before:
            connection.sendall(before)
            assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")
        connection.sendall(HEAD)
        status, body = problem(read_all(connection))
    assert (status, body["type"]) == (408, "urn:notegrade:problem:head-timeout")


def test_a_silent_connection_is_closed_without_an_answer(impatient: Served) -> None:
    with connected(impatient) as connection:
        assert read_all(connection) == b""


LIVEZ = b"GET /livez HTTP/1.1\r\nHost: x\r\n"
# Requests that are answered before they end, or that are followed by bytes of no request; and more such bytes.
UNENDING = [
    (LIVEZ + b"\r\n", b"\r\n"),
    (LIVEZ + b"Content-Length: 1000\r\n\r\n", b"a"),
    (LIVEZ + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
    (LIVEZ + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n", b"\r\n"),
    (b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n", b"a"),
]


@pytest.mark.parametrize("often", [False, True], ids=["once", "again-and-again"])
def test_bytes_that_start_no_request_do_not_keep_a_connection_open(
    checkpoint: Checkpoint, often: bool
) -> None:
    with ExitStack() as stack:
        # With a separate port for operators, the other port refuses /metrics before its body is read.
        service = stack.enter_context(served(checkpoint, **IMPATIENT, admin_port=0))
        held = [stack.enter_context(connected(service)) for _ in UNENDING]
        for connection, (request_bytes, more) in zip(held, UNENDING, strict=True):
            connection.sendall(request_bytes)
            assert connection.recv(65_536).startswith(b"HTTP/1.1 ")
            connection.sendall(more)
        stopped = time.monotonic() + 20 * IMPATIENT["request_head_timeout_s"]  # less than the keep-alive time
        while left := service.server.server_state.connections:
            assert time.monotonic() < stopped, f"{len(left)} are held"
            time.sleep(0.2)
            for connection, (_, more) in zip(held, UNENDING, strict=True):
                with suppress(ConnectionError):
                    connection.sendall(more * often)
        assert is_served(service)


def test_a_line_end_after_a_request_does_not_close_the_connection(impatient: Served) -> None:
    with connected(impatient) as connection:
        for _ in range(3):
            connection.sendall(WHOLE + b"\r\n")
            assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")


def test_too_many_connections_are_refused_and_do_not_take_the_place_of_others(service: Served) -> None:
    limit = PATIENT["max_connections"]
    with ExitStack() as stack:
        held = [stack.enter_context(connected(service)) for _ in range(limit)]
        wait_until(lambda: service.count("connections") == limit)
        with connected(service) as refused:
            refused.sendall(WHOLE)
            status, body = problem(refused.recv(65_536))  # and it is not closed yet by this client
            assert service.count("connections") == limit
        assert (status, body["type"]) == (503, "urn:notegrade:problem:too-many-connections")
        assert service.count("refused_connections_total", problem="too-many-connections") == 1
        assert body["retryable"] is True
        for connection in held:
            connection.sendall(WHOLE)
            assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")
        held[0].close()
        wait_until(lambda: service.count("connections") == limit - 1)
        assert is_served(service)


def test_a_half_closed_client_has_left(service: Served) -> None:
    service.engine.hold()
    with connected(service) as connection:
        connection.sendall(WHOLE)
        wait_until(lambda: service.engine.in_flight == 1)
        connection.shutdown(socket.SHUT_WR)
        wait_until(lambda: service.engine.aborted == 1)
        assert read_all(connection) == b""
    state = service.server.server_state
    wait_until(lambda: not (state.connections or state.tasks))
    service.engine.let_go()
    assert is_served(service)


@kept_or_closed
def test_a_client_that_does_not_read_is_cut(impatient: Served, last: bytes) -> None:
    with connected(impatient) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
        connection.settimeout(1)
        asking = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n"
        try:
            for _ in range(600):  # more than all buffers between client and service hold
                connection.sendall(asking + b"\r\n")
            connection.sendall(asking + last + b"\r\n")
        except OSError:
            pass  # the service stopped reading, as it should, or has cut the connection already
        wait_until(lambda: not impatient.server.server_state.connections, within_s=20)
    assert is_served(impatient)


def test_pipelined_requests_are_answered_in_order(service: Served) -> None:
    with connected(service) as connection:
        connection.sendall(WHOLE + b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = read_all(connection)
    assert re.findall(rb"HTTP/1\.1 (\d+)", answer) == [b"200", b"404"]


def test_malformed_bytes_during_an_answer_cut_the_connection(service: Served) -> None:
    service.engine.hold()
    with connected(service) as connection:
        connection.sendall(WHOLE)
        wait_until(lambda: service.engine.in_flight == 1)
        connection.sendall(b"\x00rubbish\r\n\r\n")
        wait_until(lambda: service.engine.aborted == 1)
    service.engine.let_go()
    assert is_served(service)


CANARY = "a note that nobody may read"


def test_an_unforeseen_error_is_logged_once_and_without_its_text(
    service: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def explode(*_: object) -> None:
        raise RuntimeError(CANARY)

    monkeypatch.setattr(type(service.stack.scorer), "score", explode)
    with connected(service) as connection:
        connection.sendall(WHOLE)
        answer = connection.recv(65_536)
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert CANARY.encode() not in answer
    assert httpx.get(f"{service.url}/readyz").is_success  # by then uvicorn has logged what it logs
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [
        "unforeseen error"
    ]
    assert CANARY not in caplog.text
    assert len(re.findall(r'test_connections\.py", line \d+, in explode', caplog.text)) == 1


def answer_to_body(service: Served, size: int, last: bytes, problem: bytes) -> bytes:
    """Send a whole body of this size, and read the answer up to the name of its problem."""
    with connected(service) as connection:
        connection.sendall(HEAD + last + b"Content-Length: %d\r\n\r\n" % size + b"a" * size)
        answer = connection.recv(65_536)
        while problem not in answer:
            answer += connection.recv(65_536)
    return answer


@kept_or_closed
@pytest.mark.parametrize("size", [2_000_000, 8_000_000])
def test_a_client_that_sends_too_large_a_body_can_read_why(service: Served, size: int, last: bytes) -> None:
    assert answer_to_body(service, size, last, b"request-too-large").startswith(b"HTTP/1.1 413 ")


def test_a_connection_serves_on_after_a_body_that_was_too_large(service: Served) -> None:
    with httpx.Client(base_url=service.url, timeout=20) as client:
        assert client.post("/score", content=b"a" * 8_000_000).status_code == 413
        assert client.post("/score", content=BODY).status_code == 200
        assert service.count("connections") == 1


def test_an_unknown_key_is_refused_before_the_body_is_sent(checkpoint: Checkpoint) -> None:
    with served(checkpoint, keys=f"score:{hash_key('key')}") as service, connected(service) as connection:
        connection.sendall(HEAD + b"Content-Length: 1000\r\nExpect: 100-continue\r\n\r\n")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 401 ")


@kept_or_closed
def test_a_client_with_an_unknown_key_can_read_why(checkpoint: Checkpoint, last: bytes) -> None:
    with served(checkpoint, keys=f"score:{hash_key('key')}") as service:
        answer = answer_to_body(service, 8_000_000, last, b"not-authenticated")
    assert answer.startswith(b"HTTP/1.1 401 ")
