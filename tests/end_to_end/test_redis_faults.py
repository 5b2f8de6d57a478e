"""Redis fails in every way under traffic on the real service: clients still get every score.

Each test prints how long it took until Redis was used again.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from redis import Redis

from service.contract.checkpoint import Checkpoint
from tests.checkpoints import PIECES, load_tiny
from tests.end_to_end.service_process import TINY_STUDENT, ServiceProcess, start_service
from tests.link import Link
from tests.redis_server import RedisServer
from tests.served import served
from tests.waiting import wait_until

pytestmark = [pytest.mark.engine, pytest.mark.redis, pytest.mark.timeout(900)]

NOTES = [{"id": str(number), "body": f"{number} quiet cafes with light and sockets"} for number in range(4)]
QUERIES = ["quiet cafes to work in", "a place with sockets"]
# A pair's scores in different batches differ by rounding. Another pair's score differs by far more.
TOLERANCE = 1e-4


@dataclass
class Rig:
    """Holds a service that reaches Redis through a link, and whose local cache holds only one pair."""

    service: ServiceProcess
    redis: RedisServer
    link: Link
    client: httpx.Client
    admin: Redis
    # The scores of known pairs by query and note.
    expected: dict[tuple[str, str], float] = field(default_factory=dict)

    def score(self, query: str, notes: list[dict[str, Any]]) -> list[dict[str, Any]]:
        response = self.client.post("/score", json={"query": query, "notes": notes, "deadline_ms": 60_000})
        assert response.status_code == 200, response.text
        results: list[dict[str, Any]] = response.json()["results"]
        return results

    def sources(self) -> set[str]:
        return {result["source"] for query in QUERIES for result in self.score(query, NOTES)}

    def errors(self) -> float:
        """Return the number of failed operations on Redis."""
        return self.service.metrics()['notegrade_cache_operations_total{result="error",tier="redis"}']

    def breaker_open(self) -> bool:
        return self.service.metrics()["notegrade_cache_breaker_open"] == 1

    def heal(self) -> None:
        self.link.delay_s = 0
        self.redis.resume()
        self.admin.config_set("maxmemory", "0")

    def send_many(self) -> Counter[str]:
        """Send known and new pairs from four clients, and check that every pair is scored rightly. Returns the sources of the scores."""
        sources: Counter[str] = Counter()

        def ask(number: int) -> None:
            query = QUERIES[number % len(QUERIES)]
            new = [{"id": "new", "body": f"new {time.monotonic_ns()}"}] if number % 8 == 0 else []
            for result in self.score(query, [*NOTES, *new]):
                assert result["outcome"] == "scored"
                known = self.expected.get((query, result["id"]), result["score"])
                assert abs(result["score"] - known) < TOLERANCE
                sources[result["source"]] += 1

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(ask, range(32)))
        return sources

    def assert_recovers(self, fault: str) -> None:
        """Check that Redis is used again, and print after how long (shown with -s)."""
        seconds = wait_until(lambda: self.sources() == {"redis"}, within_s=60)
        assert not self.breaker_open()
        print(f"{fault}: used again after {seconds:.1f} s")

    def replace_values(self, change: Callable[[list[bytes]], list[bytes]]) -> None:
        """Replace the values of each key in the cache."""
        for key in list(self.admin.scan_iter("ng:*")):
            values = values_of(self.admin, key)
            for name, value in zip(values, change(list(values.values())), strict=True):
                self.admin.hset(key, name, value)


def values_of(admin: Redis, key: Any) -> dict[bytes, bytes]:
    return cast("dict[bytes, bytes]", admin.hgetall(key))


@pytest.fixture(scope="module")
def started(redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    settings = {
        "NOTEGRADE_CHECKPOINT": str(TINY_STUDENT),
        "NOTEGRADE_ENGINE_DTYPE": "float32",
        "NOTEGRADE_LOCAL_CACHE_PAIRS": "1",
        "NOTEGRADE_REDIS_TIMEOUT_MS": "100",
        "NOTEGRADE_BREAKER_OPEN_S": "1",
    }
    log = tmp_path_factory.mktemp("rig") / "log"
    with RedisServer(redis_binary) as redis, closing(Link(redis.port)) as link:
        url = f"redis://127.0.0.1:{link.port}/0"
        with start_service(log, NOTEGRADE_REDIS_URL=url, **settings) as service:
            service.wait_until_ready()
            with httpx.Client(base_url=service.url, timeout=60) as client:
                yield Rig(service, redis, link, client, Redis.from_url(redis.url))


@pytest.fixture
def rig(started: Rig) -> Rig:
    """Wait until all known pairs come from Redis."""
    wait_until(lambda: started.sources() == {"redis"}, within_s=60)
    started.expected = {
        (query, r["id"]): r["score"] for query in QUERIES for r in started.score(query, NOTES)
    }
    return started


@contextmanager
def repeated(action: Callable[[], None], every_s: float) -> Iterator[None]:
    """Repeat the action in a thread until the end of the block."""
    stopping = threading.Event()

    def repeat() -> None:
        while not stopping.wait(every_s):
            action()

    thread = threading.Thread(target=repeat)
    thread.start()
    yield
    stopping.set()
    thread.join()


def test_refused(rig: Rig) -> None:
    rig.redis.kill()
    wait_until(rig.breaker_open)
    assert "redis" not in rig.send_many()
    rig.redis.start()
    rig.assert_recovers("refused")


def test_hung(rig: Rig) -> None:
    rig.redis.pause()
    assert "redis" not in rig.send_many()
    assert rig.breaker_open()
    rig.heal()
    rig.assert_recovers("hung")


def test_slower_than_its_timeout(rig: Rig) -> None:
    rig.link.delay_s = 0.3
    assert "redis" not in rig.send_many()
    assert rig.breaker_open()
    rig.heal()
    rig.assert_recovers("slow")


def test_slow_within_its_timeout(rig: Rig) -> None:
    rig.link.delay_s = 0.01
    assert rig.send_many()["redis"] > 0
    rig.heal()
    rig.assert_recovers("a little slow")


def test_flapping(rig: Rig) -> None:
    with repeated(rig.link.cut, every_s=0.02):
        rig.send_many()
    rig.assert_recovers("flapping")


def test_out_of_memory(rig: Rig) -> None:
    failed = rig.errors()
    rig.admin.config_set("maxmemory", "1")
    # Existing entries are still read, and new ones are not written.
    sources = rig.send_many()
    assert sources["redis"] > 0
    assert rig.errors() > failed
    rig.heal()
    rig.assert_recovers("out of memory")


@pytest.mark.parametrize(
    "to",
    [
        lambda value: value[:-1],
        lambda value: b"",
        lambda value: value + b"\0",
        lambda value: bytes(len(value)),
        lambda value: b'{"score": 1.0}',
        lambda value: bytes([*value[:12], value[12] ^ 1, *value[13:]]),
    ],
    ids=["truncated", "empty", "longer", "zeros", "foreign", "one-bit"],
)
def test_damaged_values(rig: Rig, to: Callable[[bytes], bytes]) -> None:
    rig.replace_values(lambda values: [to(value) for value in values])
    assert rig.sources() == {"engine"}
    rig.replace_values(lambda values: [to(value) for value in values])
    assert rig.send_many()["redis"] > 0
    rig.assert_recovers("damaged values")


def test_values_of_another_pair(rig: Rig) -> None:
    rig.replace_values(lambda values: [*values[1:], values[0]])
    assert rig.sources() == {"engine"}
    rig.send_many()
    rig.assert_recovers("misplaced values")


def exchange(admin: Redis, one: Any, other: Any) -> None:
    """Exchange the values of two keys that hold the same notes."""
    values = values_of(admin, one), values_of(admin, other)
    assert set(values[0]) == set(values[1])
    for key, foreign in zip((other, one), values, strict=True):
        for name, value in foreign.items():
            admin.hset(key, name, value)


def test_values_of_another_query(rig: Rig) -> None:
    rig.admin.flushall()
    rig.sources()
    wait_until(lambda: rig.sources() == {"redis"})
    exchange(rig.admin, *rig.admin.scan_iter("ng:*"))
    assert rig.sources() == {"engine"}
    rig.send_many()
    rig.assert_recovers("values of another query")


def test_values_of_another_fingerprint(tmp_path: Path, redis_server: RedisServer) -> None:
    # On the fake engine, with two checkpoints whose templates differ in one word and whose scores therefore differ.
    pieces = [{**piece, "text": "\nAsked:"} if piece.get("text") == "\nQuery:" else piece for piece in PIECES]
    changed = {"name": "another-tiny", "pieces": pieces}
    both = [load_tiny(tmp_path / "one"), load_tiny(tmp_path / "other", template=changed)]
    # The same Redis and pairs, but no entry is shared.
    own = [scores_of(each, redis_server, "engine") for each in both]
    assert all(one != other for one, other in zip(*own, strict=True))
    assert [scores_of(each, redis_server, "redis") for each in both] == own
    with Redis.from_url(redis_server.url) as admin:
        exchange(admin, *admin.scan_iter("ng:*"))
    assert [scores_of(each, redis_server, "engine") for each in both] == own
    assert [scores_of(each, redis_server, "redis") for each in both] == own


def scores_of(checkpoint: Checkpoint, redis: RedisServer, source: str) -> list[float]:
    """Return the scores from a new service with an empty local cache, after a check that each comes from `source`."""
    body = {"query": QUERIES[0], "notes": NOTES, "deadline_ms": 60_000}
    with served(checkpoint, redis_url=redis.url, redis_timeout_ms=5000) as service:
        results = httpx.post(f"{service.url}/score", json=body, timeout=60).json()["results"]
    assert [result["source"] for result in results] == [source] * len(NOTES)
    return [result["score"] for result in results]


def test_keys_of_another_type(rig: Rig) -> None:
    for key in list(rig.admin.scan_iter("ng:*")):
        rig.admin.set(key, "no hash")
    before = len(rig.service.written())
    rig.send_many()
    # Timeouts on a busy machine may open the breaker; what Redis answers about such a key may not.
    assert "ResponseError" not in rig.service.written()[before:]
    rig.assert_recovers("keys of another type")


def test_replies_after_the_breaker_has_opened(rig: Rig) -> None:
    for _ in range(3):
        rig.link.delay_s = 1.5  # later than the timeout, the opening of the breaker and its first trial
        rig.send_many()
        assert rig.breaker_open()
        rig.link.delay_s = 0  # the late replies arrive among those in time
        rig.send_many()
    rig.assert_recovers("late answers")


def test_a_password_that_was_changed(rig: Rig) -> None:
    rig.admin.config_set("requirepass", "changed")
    rig.link.cut()
    try:
        assert "redis" not in rig.send_many()
        assert rig.breaker_open()
    finally:
        with Redis(port=rig.redis.port, password="changed") as locked:
            locked.config_set("requirepass", "")
    rig.assert_recovers("password changed")
    assert "changed" not in rig.service.written()


def test_each_opening_of_the_breaker_is_logged_once(rig: Rig) -> None:
    before = rig.service.written().count("the breaker opened")
    rig.redis.pause()
    rig.send_many()
    rig.heal()
    rig.assert_recovers("hung again")
    # Failed trials of the open breaker are not logged.
    assert rig.service.written().count("the breaker opened") == before + 1
