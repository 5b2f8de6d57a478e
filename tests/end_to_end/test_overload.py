"""Callers share the overloaded real engine fairly."""

import statistics
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

# The service has both cores only if the first test here runs alone, too.
pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(900)]

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
    """Sends requests with one key, and keeps the outcomes of their pairs and the seconds until each answer with scores."""

    def __init__(self, service: ServiceProcess, key: str) -> None:
        self._url = f"{service.url}/score"
        self._headers = {"Authorization": f"Bearer {key}"}
        self.outcomes: Counter[str] = Counter()
        self.seconds: list[float] = []

    def score(self, notes: int, deadline_ms: int = 60_000) -> int:
        """Send that many new notes, and return the seconds after which the service allows to retry: 0 for an answer with scores."""
        # New pairs each time: a cached pair costs nothing and takes no turn.
        bodies = [f"{uuid.uuid4()} a quiet cafe with light and sockets " * 4 for _ in range(notes)]
        body = {
            "query": "quiet cafes to work in lisbon",
            "notes": [{"id": str(number), "body": text} for number, text in enumerate(bodies)],
            "deadline_ms": deadline_ms,
        }
        started = time.monotonic()
        response = httpx.post(self._url, json=body, headers=self._headers, timeout=120)
        assert response.status_code in (200, 503, 504), response.text
        if response.status_code != 200:
            self.outcomes[f"HTTP {response.status_code}"] += notes
            return int(response.headers.get("retry-after", 0))
        self.seconds.append(time.monotonic() - started)
        self.outcomes.update(result["outcome"] for result in response.json()["results"])
        return 0


@pytest.fixture
def greedy(keyed_service: ServiceProcess) -> Iterator[Caller]:
    """Start a caller who keeps more pairs in the engine than it can score by their deadline, until the test ends."""
    stopped = threading.Event()
    caller = Caller(keyed_service, "greedy")

    def keep_sending() -> None:
        while not stopped.is_set():
            # Retries as early as Retry-After ever allows: callers that retry at once take the processor from the engine.
            stopped.wait(min(1, caller.score(notes=250, deadline_ms=15_000)))

    with ThreadPoolExecutor() as pool:
        sending = [pool.submit(keep_sending) for _ in range(4)]
        yield caller
        stopped.set()
        for each in sending:
            each.result()
    # The caller sent too much, and the engine scored what it could.
    assert caller.outcomes["shed"] + caller.outcomes["HTTP 503"] > 0
    assert caller.outcomes["scored"] > 0


def test_two_callers_with_few_pairs_are_both_served(keyed_service: ServiceProcess) -> None:
    for key in ("greedy", "modest"):
        caller = Caller(keyed_service, key)
        caller.score(notes=2)
        assert caller.outcomes == {"scored": 2}


def test_a_caller_with_many_pairs_does_not_starve_a_caller_with_few(
    keyed_service: ServiceProcess, greedy: Caller
) -> None:
    modest, other = Caller(keyed_service, "modest"), Caller(keyed_service, "greedy")
    # After its first scores the engine is saturated, and its rate is measured.
    while not greedy.outcomes["scored"]:
        threading.Event().wait(0.1)
    with ThreadPoolExecutor() as pool:
        for _ in range(8):
            list(pool.map(lambda caller: caller.score(notes=5), (modest, other)))
    assert modest.outcomes == {"scored": 40}
    # In one queue for all, both would be answered at the same time.
    assert statistics.median(modest.seconds) < statistics.median(other.seconds) / 1.25, (
        modest.seconds,
        other.seconds,
        other.outcomes,
    )
