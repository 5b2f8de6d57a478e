"""A node of a Redis Cluster fails under a whole service on the fake engine: clients still get every score, in time."""

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from service.contract.checkpoint import Checkpoint
from tests.redis_cluster import RedisClusterServers
from tests.served import Served, served
from tests.waiting import wait_until

pytestmark = pytest.mark.redis

QUERIES = [f"quiet cafes {number}" for number in range(8)]  # on all nodes
NOTES = [{"id": "n1", "body": "a cafe with sockets"}, {"id": "n2", "body": "a bakery"}]
DEADLINE_MS = 10_000


@pytest.fixture
def service(checkpoint: Checkpoint, redis_cluster: RedisClusterServers) -> Iterator[Served]:
    """Start a service whose local cache holds only one pair."""
    settings: dict[str, Any] = {"redis_url": redis_cluster.url, "redis_cluster": True}
    with served(
        checkpoint,
        **settings,
        redis_timeout_ms=200,
        breaker_failures=2,
        breaker_open_s=0.5,
        local_cache_pairs=1,
    ) as service:
        yield service


def sources(service: Served) -> set[str]:
    """Score all pairs, each request within its deadline, and return where the scores came from."""
    found = set()
    with httpx.Client(base_url=service.url, timeout=30) as client:
        for query in QUERIES:
            started = time.monotonic()
            body = {"query": query, "notes": NOTES, "deadline_ms": DEADLINE_MS}
            results = client.post("/score", json=body).raise_for_status().json()["results"]
            assert time.monotonic() - started < DEADLINE_MS / 1000
            assert [result["outcome"] for result in results] == ["scored", "scored"]
            found |= {result["source"] for result in results}
    return found


def breaker_is_open(service: Served) -> bool:
    return service.count("cache_breaker_open") == 1


def test_a_hung_node_opens_the_breaker_until_the_cluster_is_whole(
    service: Served, redis_cluster: RedisClusterServers
) -> None:
    wait_until(lambda: sources(service) == {"redis"})
    redis_cluster.nodes[1].pause()
    redis_cluster.wait_until_down(0)
    wait_until(lambda: breaker_is_open(service))
    assert "engine" in sources(service)
    redis_cluster.heal()
    seconds = wait_until(lambda: sources(service) == {"redis"})
    assert not breaker_is_open(service)
    print(f"used again after {seconds:.1f} s")


def test_explanation_mode_is_kept_in_the_cluster(service: Served, redis_cluster: RedisClusterServers) -> None:
    flip = {"mode": "on_request", "ttl_s": 600, "reason": "n1 ranks too high"}
    path = "/admin/explanation-mode"
    httpx.put(f"{service.url}{path}", json=flip, headers={"If-Match": '"0"'}).raise_for_status()
    history = httpx.get(f"{service.url}{path}/history").raise_for_status().json()["flips"]
    assert [each["reason"] for each in history] == ["n1 ranks too high"]
    assert redis_cluster.admins[redis_cluster.owner("ng:{mode}")].exists("ng:{mode}")
