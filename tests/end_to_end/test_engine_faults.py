"""The engine's process or the service is killed, hangs or is stopped under load: clients get answers, and the next start works."""

import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from load_tests.processes import free_port
from service.contract.checkpoint import Checkpoint
from service.http.server import LAST_ANSWERS_S
from tests.end_to_end.service_process import ServiceProcess
from tests.end_to_end.supervised import (
    ENGINE_HANG_S,
    ENGINE_LOST_EXIT_S,
    Supervised,
    engine_core,
    exit_code,
    readiness,
)
from tests.waiting import wait_until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

# Counts lookups of new pairs.
LOOKED_UP = 'notegrade_cache_operations_total{result="miss",tier="local"}'
DRAIN_DELAY_S, DRAIN_TIMEOUT_S = 3, 10
# By then every request is answered, and every connection is closed after that.
STOP_S = DRAIN_DELAY_S + DRAIN_TIMEOUT_S + LAST_ANSWERS_S
# vLLM waits 5 s for its process to end; the rest is for a busy machine.
EXIT_TIMEOUT_S = 60
# No pair of the load is shed for its deadline, however slow the machine is.
LOAD_DEADLINE_MS = 600_000


@pytest.fixture(scope="module")
def supervised(
    default_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Supervised]:
    environment = {
        "NOTEGRADE_ENGINE_HANG_S": str(ENGINE_HANG_S),
        "NOTEGRADE_ENGINE_LOST_EXIT_S": str(ENGINE_LOST_EXIT_S),
        "NOTEGRADE_DRAIN_DELAY_S": str(DRAIN_DELAY_S),
        "NOTEGRADE_DRAIN_TIMEOUT_S": str(DRAIN_TIMEOUT_S),
        "NOTEGRADE_MAX_DEADLINE_MS": str(LOAD_DEADLINE_MS),
    }
    supervised = Supervised(free_port(), tmp_path_factory.mktemp("supervised"), environment)
    yield supervised
    supervised.kill()


def body(notes: int, deadline_ms: int = 60_000) -> dict[str, Any]:
    """Make a request for new pairs."""
    texts = [f"{uuid.uuid4()} a quiet cafe with light and sockets " * 4 for _ in range(notes)]
    return {
        "query": "quiet cafes",
        "notes": [{"id": str(number), "body": text} for number, text in enumerate(texts)],
        "deadline_ms": deadline_ms,
    }


def score(url: str, notes: int = 2, deadline_ms: int = 60_000) -> httpx.Response:
    return httpx.post(f"{url}/score", json=body(notes, deadline_ms), timeout=120)


def send_load(pool: ThreadPoolExecutor, service: ServiceProcess) -> list[Future[httpx.Response]]:
    """Send four requests with more than ten seconds of work. Returns when the service has read all of them and the engine works on the last ones."""
    lookups_before = service.metrics()[LOOKED_UP]
    sending = [pool.submit(score, service.url, 100, LOAD_DEADLINE_MS) for _ in range(4)]
    wait_until(lambda: service.metrics()[LOOKED_UP] >= lookups_before + 400, within_s=60)
    wait_until(lambda: service.metrics()["notegrade_backlog_tokens"] > 2_000, within_s=60)
    return sending


def outcomes(answer: httpx.Response) -> set[str]:
    return {result["outcome"] for result in answer.json()["results"]}


def assert_engine_lost_answers(sending: list[Future[httpx.Response]]) -> None:
    answers = [each.result() for each in sending]
    # On a busy machine the first requests may be answered before the engine is lost.
    lost = [each for each in answers if each.status_code != 200 or outcomes(each) != {"scored"}]
    assert lost
    for answer in lost:
        if answer.status_code == 200:  # pairs that were scored before are returned
            assert outcomes(answer) <= {"scored", "failed"}
            continue
        assert answer.status_code == 503
        assert answer.json()["type"] == "urn:notegrade:problem:engine-lost"
        assert answer.json()["retryable"] is True
        assert int(answer.headers["retry-after"]) > 0


def test_engine_killed_mid_batch(supervised: Supervised) -> None:
    service = supervised.running()
    with ThreadPoolExecutor(4) as pool:
        sending = send_load(pool, service)
        killed_at = time.monotonic()
        engine_core(service).kill()
        wait_until(lambda: readiness(service) == (503, "engine_lost"))
        print(f"killed: not ready after {time.monotonic() - killed_at:.1f} s")
    assert_engine_lost_answers(sending)
    assert score(service.url).status_code == 503
    assert exit_code(service, ENGINE_LOST_EXIT_S + EXIT_TIMEOUT_S) == 1
    print(f"killed: exited after {time.monotonic() - killed_at:.1f} s")
    started_at = time.monotonic()
    again = supervised.running()
    print(f"killed: ready again {time.monotonic() - started_at:.1f} s after its start")
    assert again is not service
    assert score(again.url).json()["results"][0]["outcome"] == "scored"


def test_engine_hung_mid_batch(supervised: Supervised) -> None:
    service = supervised.running()
    core = engine_core(service)
    with ThreadPoolExecutor(4) as pool:
        sending = send_load(pool, service)
        hung_at = time.monotonic()
        core.suspend()
        wait_until(lambda: readiness(service) == (503, "engine_lost"), within_s=ENGINE_HANG_S + 30)
        print(f"hung: not ready after {time.monotonic() - hung_at:.1f} s")
    assert_engine_lost_answers(sending)
    assert exit_code(service, ENGINE_LOST_EXIT_S + EXIT_TIMEOUT_S) == 1
    print(f"hung: exited after {time.monotonic() - hung_at:.1f} s")
    assert not core.is_running()
    assert score(supervised.running().url).json()["results"][0]["outcome"] == "scored"


def test_service_killed(supervised: Supervised) -> None:
    service = supervised.running()
    core = engine_core(service)
    with ThreadPoolExecutor(4) as pool:
        sending = send_load(pool, service)
        killed_at = time.monotonic()
        service.process.kill()
        # On a busy machine the first requests may be answered before. No process is left to answer the others: their connections close at once, which a client notices.
        broken = [error for each in sending if (error := each.exception()) is not None]
    assert broken
    assert {type(error) for error in broken} <= {httpx.RemoteProtocolError, httpx.ReadError}
    assert service.process.wait(30) == -signal.SIGKILL
    wait_until(lambda: not core.is_running(), within_s=30)
    print(f"service killed: its engine's process exited after {time.monotonic() - killed_at:.1f} s")
    assert score(supervised.running().url).json()["results"][0]["outcome"] == "scored"


class Clients:
    """Sends requests like clients behind a load balancer that polls /readyz five times a second and sends nothing to a service that is not ready."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._is_unready = threading.Event()
        self.statuses: Counter[int] = Counter()
        self.broken: list[str] = []
        # The share of its deadline that each answer took.
        self.shares: list[float] = []
        # For requests that were open at the signal to stop: the seconds from then until their answer.
        self.stopped_at = float("inf")
        self.open_for: list[float] = []

    def balance(self) -> None:
        while not self._is_unready.wait(0.2):
            if httpx.get(f"{self._url}/readyz", timeout=30).status_code != 200:
                self._is_unready.set()

    def keep_sending(self, notes: int, deadline_s: float) -> None:
        with httpx.Client(timeout=60) as client:  # which keeps its connections open
            while not self._is_unready.is_set():
                started_at = time.monotonic()
                try:
                    request = body(notes, deadline_ms=round(deadline_s * 1000))
                    response = client.post(f"{self._url}/score", json=request)
                except httpx.HTTPError as error:
                    self.broken.append(repr(error))
                else:
                    self.statuses[response.status_code] += 1
                    self._time(started_at, deadline_s)
                    if response.status_code == 503:  # clients send fewer requests then
                        self._is_unready.wait(0.5)

    def _time(self, started_at: float, deadline_s: float) -> None:
        now = time.monotonic()
        self.shares.append((now - started_at) / deadline_s)
        if started_at < self.stopped_at < now:
            self.open_for.append(now - self.stopped_at)


def test_service_stopped_under_load(supervised: Supervised) -> None:
    service = supervised.running()
    clients = Clients(service.url)
    with ThreadPoolExecutor(9) as pool:
        working = [pool.submit(clients.keep_sending, 2, deadline_s=20) for _ in range(6)]
        # More pairs than can be scored in time: their deadline ends these requests, before and after the signal.
        working += [pool.submit(clients.keep_sending, 100, deadline_s=4) for _ in range(2)]
        working.append(pool.submit(clients.balance))
        wait_until(lambda: clients.statuses[200] >= 6, within_s=120)
        core = engine_core(service)
        clients.stopped_at = time.monotonic()
        service.process.terminate()
        core.send_signal(signal.SIGINT)  # Ctrl-C reaches all processes of a terminal
        for each in working:
            each.result()
    assert exit_code(service, 3 * STOP_S) == 0
    assert clients.open_for
    print(
        f"stopped: exited after {time.monotonic() - clients.stopped_at:.1f} s, {dict(clients.statuses)}; "
        f"slowest answer: {max(clients.shares):.2f} of its deadline; open then: {len(clients.open_for)}, "
        f"the last one answered {max(clients.open_for):.1f} s later"
    )
    assert clients.broken == []
    assert set(clients.statuses) <= {200, 503, 504}
    # Every request is answered by its deadline; twice the deadline is for a busy machine.
    assert max(clients.shares) < 2
    assert max(clients.open_for) < 2 * STOP_S
    assert '"reason": "draining"' in service.written()
    assert "leaked" not in service.written()
