"""The service stops on a signal or when its engine is lost; clients use real sockets."""

import asyncio
import resource
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from service.contract.checkpoint import Checkpoint
from service.engines.fake_engine import FakeEngine
from service.errors import ConfigurationError
from service.http.auth import hash_key
from service.http.server import allow_open_files, bind
from tests.checkpoints import fake_engine_for
from tests.served import Served, served
from tests.waiting import until, wait_until

BODY = {"query": "quiet cafes", "notes": [{"id": "n", "body": "A quiet cafe."}], "deadline_ms": 60_000}
PATIENT: dict[str, Any] = {"drain_delay_s": 4, "drain_timeout_s": 20, "engine_lost_exit_s": 4}


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def score(service: Served, **changes: object) -> httpx.Response:
    return httpx.post(f"{service.url}/score", json={**BODY, **changes}, timeout=30)


def readiness(service: Served) -> tuple[int, str]:
    response = httpx.get(f"{service.url}/readyz", timeout=30)
    return response.status_code, response.json()["reason"]


def terminate(service: Served) -> None:
    service.server.handle_exit(signal.SIGTERM, None)


def stops(service: Served) -> bool:
    service.thread.join(20)
    return not service.thread.is_alive()


def test_sigterm_fails_readiness_first_and_serves_on_for_a_while(checkpoint: Checkpoint) -> None:
    with served(checkpoint, **PATIENT) as service:
        terminate(service)
        wait_until(lambda: readiness(service) == (503, "draining"))
        answered = score(service)
        assert answered.status_code == 200
        # Clients are asked to open their next connection elsewhere.
        wait_until(lambda: score(service).headers.get("connection") == "close")
        assert stops(service)
        assert not service.server.failed
        with pytest.raises(httpx.ConnectError):
            score(service)


def test_open_requests_are_answered_when_the_service_stops(
    checkpoint: Checkpoint, pool: ThreadPoolExecutor
) -> None:
    with served(checkpoint, **PATIENT) as service:
        service.engine.hold()
        asking = [pool.submit(score, service, query=f"query {number}") for number in range(8)]
        wait_until(lambda: service.engine.in_flight == 8)
        terminate(service)
        wait_until(lambda: not is_listening(service))
        assert not any(each.done() for each in asking)
        service.engine.let_go()
        assert [each.result().status_code for each in asking] == [200] * 8


def is_listening(service: Served) -> bool:
    try:
        socket.create_connection(service.address, timeout=5).close()
    except ConnectionError:
        return False
    return True


def test_requests_open_after_the_drain_get_503_instead_of_a_reset(
    checkpoint: Checkpoint, pool: ThreadPoolExecutor
) -> None:
    with served(checkpoint, drain_delay_s=0, drain_timeout_s=0.5) as service:
        service.engine.hold()
        asking = [pool.submit(score, service, query=f"query {number}") for number in range(8)]
        wait_until(lambda: service.engine.in_flight == 8)
        terminate(service)
        for each in asking:
            response = each.result()
            assert response.status_code == 503
            assert "retry elsewhere" in response.json()["detail"]
            assert int(response.headers["retry-after"]) > 0


@pytest.mark.parametrize("signals", [[signal.SIGTERM, signal.SIGTERM], [signal.SIGINT]])
def test_a_second_sigterm_or_ctrl_c_stop_at_once(
    checkpoint: Checkpoint, signals: list[signal.Signals]
) -> None:
    with served(checkpoint, drain_delay_s=600, drain_timeout_s=5) as service:
        for each in signals:
            service.server.handle_exit(each, None)
        assert stops(service)


def test_a_service_that_was_not_ready_stops_without_a_delay(checkpoint: Checkpoint) -> None:
    with served(checkpoint, drain_delay_s=600, drain_timeout_s=5) as service:
        service.stack.readiness.set("probe_mismatch", "a test")
        terminate(service)
        assert stops(service)


@pytest.fixture
def watched(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    monkeypatch.setattr("service.app.CHECK_EVERY_S", 0.02)
    return fake_engine_for(checkpoint, max_silent_checks=10)


def test_a_hung_engine_fails_open_requests_and_ends_the_service(
    checkpoint: Checkpoint, watched: FakeEngine, pool: ThreadPoolExecutor
) -> None:
    with served(checkpoint, engine=watched, **PATIENT) as service:
        watched.hold()
        asking = [pool.submit(score, service, query=f"query {number}") for number in range(8)]
        for each in asking:
            response = each.result()
            assert response.status_code == 503
            assert response.json()["type"] == "urn:notegrade:problem:engine-lost"
            assert int(response.headers["retry-after"]) > 0
        assert readiness(service) == (503, "engine_lost")
        assert score(service).status_code == 503
        assert stops(service)
        assert service.server.failed


def test_a_dead_engine_ends_the_service(checkpoint: Checkpoint, watched: FakeEngine) -> None:
    with served(checkpoint, engine=watched, **PATIENT) as service:
        watched.kill()
        wait_until(lambda: readiness(service) == (503, "engine_lost"))
        assert stops(service)
        assert service.server.failed


def test_an_idle_engine_does_not_count_as_hung(checkpoint: Checkpoint, watched: FakeEngine) -> None:
    with served(checkpoint, engine=watched) as service:
        time.sleep(0.5)  # 25 checks
        assert score(service).status_code == 200


PRIVATE = (
    "/metrics",
    "/admin/explanation-mode",
    "/admin/figures",
    "/console",
    "/console/console.js",
    "/console/citations.js",
)
PUBLIC = ("/livez", "/readyz", "/version", "/openapi.json")


def test_operator_routes_are_served_on_their_own_port_alone(checkpoint: Checkpoint) -> None:
    with served(checkpoint, admin_port=0) as service:
        assert service.url != service.private_url
        for path in PRIVATE:
            assert httpx.get(service.private_url + path).status_code == 200, path
            hidden = httpx.get(
                service.url + path, headers={"Host": service.private_url.removeprefix("http://")}
            )
            assert hidden.status_code == 404, path
            assert hidden.headers["content-type"] == "application/problem+json"
        assert httpx.put(f"{service.url}/admin/explanation-mode", json={}).status_code == 404
        for path in PUBLIC:
            assert httpx.get(service.url + path).status_code == 200, path
        assert score(service).status_code == 200


def test_without_an_admin_port_all_routes_are_on_one_port(checkpoint: Checkpoint) -> None:
    with served(checkpoint) as service:
        for path in (*PRIVATE, *PUBLIC):
            assert httpx.get(service.url + path).status_code == 200, path


def test_a_port_in_use_is_a_clear_error() -> None:
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port {port}: something else listens there"):
            bind("127.0.0.1", port)


def test_two_services_that_start_at_once_do_not_share_a_port(checkpoint: Checkpoint) -> None:
    with served(checkpoint) as service, bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with bind("127.0.0.1", port) as later:  # binding succeeds as long as neither listens
            first.listen()
            with pytest.raises(ConfigurationError, match=f"port {port}: something else listens there"):
                service.server.run([later])


def test_connections_are_refused_before_the_server_runs() -> None:
    with bind("127.0.0.1", 0) as listener, pytest.raises(ConnectionRefusedError):
        socket.create_connection(listener.getsockname(), timeout=5)


def test_ipv6_addresses_can_be_bound() -> None:
    with bind("::1", 0) as listener:
        assert listener.family == socket.AF_INET6


def test_too_few_open_files_are_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1024))
    with pytest.raises(ConfigurationError, match="1000 connections need 1256 open files, 1024 are allowed"):
        allow_open_files(1000)


def test_the_soft_limit_on_open_files_is_raised_as_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: made.append(limits))
    allow_open_files(500)
    allow_open_files(1000)
    assert made == [(1256, 4096)]


async def test_a_hundred_at_once_cost_one_engine_pass_though_the_first_one_leaves(
    checkpoint: Checkpoint,
) -> None:
    with served(checkpoint) as service:
        before = service.engine.finished
        service.engine.hold()
        async with httpx.AsyncClient(base_url=service.url, timeout=30, limits=httpx.Limits()) as client:
            first = asyncio.create_task(client.post("/score", json=BODY))
            await until(lambda: service.engine.in_flight == 1)
            others = [asyncio.create_task(client.post("/score", json=BODY)) for _ in range(99)]
            await until(lambda: len(service.server.server_state.tasks) == 100, within_s=20)
            first.cancel()
            await until(lambda: len(service.server.server_state.tasks) == 99, within_s=20)
            assert (service.engine.in_flight, service.engine.aborted) == (1, 0)
            service.engine.let_go()
            answers = [(await other).json()["results"][0] for other in others]
        assert service.engine.finished == before + 1
        assert {answer["outcome"] for answer in answers} == {"scored"}
        assert {answer["source"] for answer in answers} <= {"coalesced", "local"}
        assert len({answer["score"] for answer in answers}) == 1


def test_no_secret_is_answered_or_logged(checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    secrets = ("admin-key", hash_key("admin-key"), "hunter2")
    keys, redis_url = f"admin:{hash_key('admin-key')}:ann", "redis://:hunter2@127.0.0.1:1/0"
    with served(checkpoint, admin_port=0, keys=keys, redis_url=redis_url) as service:
        headers = {"Authorization": "Bearer admin-key"}
        for path in (*PRIVATE, *PUBLIC):
            for sent in (headers, {"Authorization": "Bearer wrong"}, {}):
                answer = httpx.get(service.private_url + path, headers=sent)
                assert not [secret for secret in secrets if secret in answer.text], path
        # Redis is unreachable, which both the cache and explanation mode log.
        scored = httpx.post(f"{service.url}/score", json=BODY, headers=headers)
        assert scored.status_code == 200
        wait_until(lambda: "can't be followed" in caplog.text)
    assert not [secret for secret in secrets if secret in caplog.text]
