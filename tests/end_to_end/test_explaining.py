"""Explanation mode works on three real replicas: the switch, the traces and the guard."""

import json
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import pytest

from tests.end_to_end.replicas import GUARDED_P99_MS, MODE, PAIR, Replicas
from tests.waiting import wait_until

pytestmark = [pytest.mark.engine, pytest.mark.redis, pytest.mark.timeout(1800)]


@pytest.fixture(autouse=True)
def starting_off(replicas: Replicas) -> None:
    replicas.flip("off")
    wait_until(lambda: replicas.follow("off", 0, 1, 2))


def follow_times(replicas: Replicas) -> list[float]:
    """Flip the mode on the first replica, on and off; return how long the others took to follow."""
    found = []
    for mode in ("all", "off") * 3:
        assert replicas.flip(mode).status_code == 200
        found.append(wait_until(partial(replicas.follow, mode, 1, 2)))
    return found


def test_three_replicas_follow_within_two_seconds(replicas: Replicas) -> None:
    # The median: on a busy machine a single flip may be followed late.
    assert statistics.median(follow_times(replicas)) < 2


def test_replicas_follow_without_messages_too(replicas: Replicas) -> None:
    stopped = threading.Event()

    def disconnect_listeners() -> None:
        from redis import Redis

        with Redis.from_url(replicas.redis.url) as redis:
            while not stopped.wait(0.01):
                redis.client_kill_filter(_type="pubsub")

    with ThreadPoolExecutor() as pool:
        disconnecting = pool.submit(disconnect_listeners)
        try:
            assert statistics.median(follow_times(replicas)) < 2
        finally:
            stopped.set()
        disconnecting.result()


def test_only_one_of_three_flips_at_once_succeeds(replicas: Replicas) -> None:
    etag = replicas.mode()["etag"]
    bodies = [{"mode": "all", "ttl_s": 60, "reason": f"replica {replica}"} for replica in range(3)]

    def put(replica: int) -> httpx.Response:
        return replicas.clients[replica].put(MODE, json=bodies[replica], headers={"If-Match": etag})

    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(put, range(3)))
    assert sorted(answer.status_code for answer in answers) == [200, 412, 412]
    assert {answer.json()["type"] for answer in answers if answer.is_error} == {
        "urn:notegrade:problem:mode-conflict"
    }


def test_the_mode_expires_on_every_replica(replicas: Replicas) -> None:
    replicas.flip("all", ttl_s=10)
    wait_until(lambda: replicas.follow("all", 1))
    wait_until(lambda: replicas.follow("off", 0, 1, 2))
    assert replicas.mode(2)["last"]["mode"] == "all"


def test_without_redis_the_last_known_mode_expires_and_does_not_return(replicas: Replicas) -> None:
    replicas.flip("all", ttl_s=15)
    wait_until(lambda: replicas.follow("all", 1, 2))
    replicas.redis.kill()
    try:
        wait_until(lambda: replicas.mode(1)["unread_s"] is not None)
        assert replicas.mode(1)["mode"] == "all"
        refused = replicas.flip("off")
        assert refused.status_code == 503
        assert refused.json()["type"].endswith("explanation-store-unavailable")
        wait_until(lambda: replicas.follow("off", 0, 1, 2))
        assert replicas.score()["explanation_mode"] == "off"
    finally:
        replicas.redis.start()
    wait_until(lambda: replicas.mode(1)["unread_s"] is None)
    assert replicas.follow("off", 0, 1, 2)


NOTE = {"id": "n", "title": PAIR["title"], "body": PAIR["body"]}


def test_a_score_is_the_same_with_and_without_its_explanation(replicas: Replicas) -> None:
    query = "red chair friday"  # used by no other test: the engine must compute it both times
    [plain] = replicas.score(0, query=query, notes=[NOTE])["results"]
    replicas.redis.restart()  # so that the second request is not served from the cache
    wait_until(lambda: replicas.flip("on_request").status_code == 200)
    wait_until(lambda: replicas.follow("on_request", 1))
    answer = replicas.score(1, query=query, notes=[NOTE], explain=True)
    [explained] = answer["results"]
    assert answer["explanation_mode"] == "on_request"
    assert (plain["source"], explained["source"]) == ("engine", "engine")
    explanation = explained.pop("explanation")
    assert plain.pop("explanation") is None
    assert explained == plain
    assert (explanation["outcome"], explanation["well_formed"]) == ("made", True), explanation
    assert explanation["agrees"] is (explanation["steps"][-1]["grade"] == plain["grade"])


def test_one_pair_is_streamed_as_it_is_generated(replicas: Replicas) -> None:
    replicas.flip("on_request")
    body = {"query": PAIR["query"], "note": {"title": PAIR["title"], "body": PAIR["body"]}}
    with replicas.clients[0].stream("POST", "/explain", json=body) as response:
        blocks = [line for line in response.iter_lines() if line]
    names = [line.removeprefix("event: ") for line in blocks[::2]]
    data = [json.loads(line.removeprefix("data: ")) for line in blocks[1::2]]
    assert (names[0], names[-1], set(names[1:-1])) == ("score", "explanation", {"text"})
    assert names.count("text") > 1  # a slow service sends several pieces at once
    assert "".join(data[1:-1]).strip("\n").endswith(data[-1]["text"])


def test_sampled_explanations_are_read_on_any_replica(replicas: Replicas) -> None:
    replicas.flip("all")
    answer = replicas.score(0, query=PAIR["query"], notes=[NOTE], request_id="kept-1")
    assert answer["results"][0]["explanation"]["outcome"] == "deferred"
    wait_until(lambda: replicas.clients[1].get("/explanations/kept-1").status_code == 200)
    [kept] = replicas.clients[1].get("/explanations/kept-1").json()["explanations"]
    assert (kept["note_id"], kept["outcome"]) == ("n", "made")


@pytest.fixture
def load(replicas: Replicas) -> Iterator[None]:
    """Send requests with new notes to the replica with the low limit until the test ends."""
    stopped = threading.Event()

    def ask(worker: int) -> None:
        for turn in range(100_000):
            if stopped.is_set():
                return
            notes = [{"id": str(i), "body": f"{worker} {turn} {i} a quiet cafe " * 8} for i in range(8)]
            replicas.score(2, notes=notes)

    with ThreadPoolExecutor() as pool:
        asking = [pool.submit(ask, worker) for worker in range(4)]
        yield
        stopped.set()
        for each in asking:
            each.result()
    # Wait until the guard's window holds none of these requests, which would disturb the next tests.
    wait_until(lambda: sum(second["requests"] for second in figures(replicas)[-11:]) == 0)


def figures(replicas: Replicas) -> list[dict[str, Any]]:
    seconds: list[dict[str, Any]] = replicas.clients[2].get("/admin/figures").json()["seconds"]
    return seconds


def test_the_guard_turns_the_mode_off_everywhere_and_it_stays_off(replicas: Replicas, load: None) -> None:
    before = len(replicas.clients[0].get(f"{MODE}/history").json()["flips"])
    replicas.flip("all", ttl_s=300)
    wait_until(lambda: replicas.follow("off", 0, 1, 2), within_s=60)
    flips = replicas.clients[0].get(f"{MODE}/history").json()["flips"]
    assert [flip["owner"] for flip in flips[: len(flips) - before]] == ["guard", "ann"]
    assert f"limit {GUARDED_P99_MS} ms" in flips[0]["reason"]
    for replica in range(3):
        refused = replicas.flip("all", replica=replica)
        assert refused.status_code == 409
        assert refused.json()["type"].endswith("mode-refused")
        assert 0 < int(refused.headers["retry-after"]) <= 60
    time.sleep(5)  # five more checks of every guard
    assert len(replicas.clients[0].get(f"{MODE}/history").json()["flips"]) == before + 2
