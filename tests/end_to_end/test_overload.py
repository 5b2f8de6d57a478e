"""Callers share the overloaded real engine fairly."""

import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from service.http.auth import hash_key
from tests.end_to_end.service_process import ServiceProcess, start_service

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]

KEYS = f"score:{hash_key('greedy')}:greedy,score:{hash_key('modest')}:modest"


@pytest.fixture(scope="module")
def keyed_service(
    default_checkpoint: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServiceProcess]:
    """Start a service on the default checkpoint that has keys of two callers."""
    log = tmp_path_factory.mktemp("overload") / "log"
    with start_service(log, NOTEGRADE_KEYS=KEYS, NOTEGRADE_HOST="127.0.0.1") as service:
        service.wait_until_ready()
        yield service


class Caller:
    """Sends requests with one key, and counts the outcomes of their pairs."""

    def __init__(self, service: ServiceProcess, key: str) -> None:
        self._url = f"{service.url}/score"
        self._headers = {"Authorization": f"Bearer {key}"}
        self.outcomes: Counter[str] = Counter()

    def score(self, notes: int, deadline_ms: int, priority: str = "online") -> None:
        # New pairs each time: a cached pair costs nothing and takes no turn.
        bodies = [f"{uuid.uuid4()} a quiet cafe with light and sockets " * 4 for _ in range(notes)]
        body = {
            "query": "quiet cafes to work in lisbon",
            "notes": [{"id": str(number), "body": text} for number, text in enumerate(bodies)],
            "deadline_ms": deadline_ms,
            "priority": priority,
        }
        response = httpx.post(self._url, json=body, headers=self._headers, timeout=120)
        assert response.status_code in (200, 503, 504), response.text
        if response.status_code == 503:
            assert int(response.headers["retry-after"]) >= 1
        results = response.json().get("results") or [{"outcome": f"HTTP {response.status_code}"}] * notes
        self.outcomes.update(result["outcome"] for result in results)


@pytest.fixture
def slowness(keyed_service: ServiceProcess) -> float:
    """Return how many times slower this machine is now than two idle cores, on which a full step takes 0.6 s; at least 1.

    A deadline of only a few steps can't be met however fair the turns are. The maximum deadline allows a factor of 4.
    """
    caller = Caller(keyed_service, "modest")
    caller.score(notes=15, deadline_ms=60_000)  # warms up
    started = time.monotonic()
    caller.score(notes=15, deadline_ms=60_000)
    return min(4.0, max(1.0, (time.monotonic() - started) / 0.6))


@pytest.fixture
def greedy(keyed_service: ServiceProcess, slowness: float) -> Iterator[Caller]:
    """Start a caller who keeps more pairs in the engine than it can score by their deadline, until the test ends."""
    stopped = threading.Event()
    callers = [Caller(keyed_service, "greedy") for _ in range(4)]

    def keep_sending(caller: Caller) -> None:
        while not stopped.is_set():
            caller.score(notes=250, deadline_ms=round(15_000 * slowness))

    with ThreadPoolExecutor() as pool:
        sending = [pool.submit(keep_sending, caller) for caller in callers]
        yield callers[0]
        stopped.set()
        for each in sending:
            each.result()
    total = sum((caller.outcomes for caller in callers), Counter[str]())
    # The caller sent too much, and the engine scored what it could.
    assert total["shed"] + total["HTTP 503"] > 0
    assert total["scored"] > 0


def test_two_callers_with_few_pairs_are_both_served(keyed_service: ServiceProcess) -> None:
    for key in ("greedy", "modest"):
        caller = Caller(keyed_service, key)
        caller.score(notes=2, deadline_ms=60_000)
        assert caller.outcomes == {"scored": 2}


@pytest.mark.alone
def test_a_caller_with_many_pairs_does_not_starve_a_caller_with_few(
    keyed_service: ServiceProcess, greedy: Caller, slowness: float
) -> None:
    modest = Caller(keyed_service, "modest")
    while not greedy.outcomes:  # after its first answer the engine is saturated, and its rate is measured
        threading.Event().wait(0.1)
    for _ in range(8):
        # Far less time than all pairs of the greedy caller would take.
        modest.score(notes=5, deadline_ms=round(6_000 * slowness))
    assert modest.outcomes["scored"] >= 0.9 * modest.outcomes.total(), modest.outcomes
