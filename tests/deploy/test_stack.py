"""The whole stack on one machine, each part the real one: what its parts promise of one another, and what is left when one is killed."""

import json
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from deploy.grafana.make_dashboards import DASHBOARDS
from tests.deploy.containers import ROOT
from tests.deploy.dashboard_queries import empty_queries, turn_on_explanations
from tests.deploy.prometheus_rig import tools
from tests.deploy.whole_stack import QUERIES, Answer, Stack, tiny_checkpoint, whole_stack
from tests.end_to_end.supervised import engine_core, exit_code
from tests.redis_server import RedisServer
from tests.tools import HAPROXY, require
from tests.waiting import wait_until

pytestmark = [pytest.mark.engine, pytest.mark.redis, pytest.mark.timeout(900)]

VICTIM = "replica2"
# Random weights write no steps that could agree with a grade. test_dashboards.py draws both on the twin.
UNDRAWN = {"Agreement with the served grade", "Traces whose last grade is the served one"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def stack(checkpoint: Path, redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    tools()  # what is missing is found out before anything starts
    haproxy = require(HAPROXY)
    redis = RedisServer(redis_binary)
    redis.start()
    try:
        with whole_stack(checkpoint, redis, haproxy, tmp_path_factory.mktemp("stack")) as stack:
            yield stack
    finally:
        redis.kill()


@dataclass(frozen=True)
class Well:
    """What was seen while all was well."""

    begun: float
    first: dict[str, Answer]
    again: dict[str, Answer]
    explained: list[str]
    sent: Counter[str]
    counted: dict[str, int]
    pairs: Counter[str]
    counted_pairs: dict[str, int]
    fired: set[str]


@pytest.fixture(scope="module")
def well(stack: Stack) -> Well:
    """Each query thrice, some explained, and some requests that are refused."""
    begun = time.time()
    first, again = stack.ask_all(), stack.ask_all()
    turn_on_explanations(str(stack.router.client.base_url), "on_request")
    on = 'notegrade_explanation_mode{mode="on_request"}'
    wait_until(lambda: stack.watching.value(f"sum({on})") == len(stack.replicas))
    explained = explain(stack)
    assert stack.ask_all() == again
    for bad in ({"criteria": "none of these"}, {"notes": 0}, {"deadline_ms": "soon"}):
        assert stack.score(QUERIES[0], **bad).status_code == 422
    counted = stack.counted("status")
    pairs = stack.watching.values("sum by (outcome) (notegrade_pair_outcomes_total) > 0", "outcome")
    return Well(
        begun,
        first,
        again,
        explained,
        Counter(map(str, stack.statuses)),
        counted,
        Counter(stack.outcomes),
        {outcome: round(number) for outcome, number in pairs.items()},
        stack.fired(),
    )


def explain(stack: Stack) -> list[str]:
    """What became of the explanations of some pairs."""
    answers = [stack.score(query, 1, explain=True).json() for query in QUERIES[:12]]
    return [answer["results"][0]["explanation"]["outcome"] for answer in answers]


@dataclass(frozen=True)
class Bereft:
    """What was seen while one of three was gone, and after it had come back."""

    open_on_it: list[int | None]
    at_once: dict[str, Answer]
    settled: dict[str, Answer]
    back: dict[str, Answer]
    counted: int
    answered: int
    alerts: list[tuple[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def bereft(stack: Stack, well: Well) -> Bereft:
    """One is killed with requests open on it; its supervisor is slow to start it again."""
    counted_by_it = stack.counted("instance")[stack.instance(VICTIM)]
    open_on_it = kill_with_open_requests(stack, [q for q in QUERIES if well.first[q].replica == VICTIM][:3])
    at_once = stack.ask_all()  # before any check of HAProxy's has seen it
    stack.router.wait_for(down=VICTIM)
    settled = stack.ask_all()
    wait_until(lambda: bool(stack.receiver.has("firing", instance=stack.instance(VICTIM))), within_s=120)
    stack.replicas[VICTIM].running()
    stack.router.wait_for()
    wait_until(lambda: bool(stack.receiver.has("resolved", instance=stack.instance(VICTIM))), within_s=120)
    back = stack.ask_all()
    counted = sum(stack.counted("instance").values()) + counted_by_it
    answered = sum(status != 502 for status in stack.statuses)
    return Bereft(open_on_it, at_once, settled, back, counted, answered, list(stack.receiver.told))


def kill_with_open_requests(stack: Stack, queries: list[str]) -> list[int | None]:
    """What became of requests that the victim had taken when it was killed."""
    service = stack.replicas[VICTIM].running()
    core = engine_core(service)
    with ThreadPoolExecutor(len(queries)) as pool:
        service.process.send_signal(signal.SIGSTOP)  # or it would answer before it is killed
        asked = [pool.submit(status_of, stack, query) for query in queries]
        wait_until(lambda: stack.router.open_on(VICTIM) == len(queries))
        service.process.kill()
        service.process.wait(30)
    wait_until(lambda: not core.is_running() or core.status() == psutil.STATUS_ZOMBIE)
    return [each.result() for each in asked]


def status_of(stack: Stack, query: str) -> int | None:
    """None where there is no answer: on a connection that it has used before, HAProxy leaves it to the caller to try again."""
    try:
        return stack.score(query).status_code
    except httpx.RemoteProtocolError:
        return None


@pytest.fixture(scope="module")
def strained(stack: Stack, bereft: Bereft) -> float:
    """The time after some of what makes alerts fire: errors, explanations dropped, more asked for than can be done."""
    explain(stack)  # for the second time: a counter that has begun above 0 has no rate
    assert stack.score("one without time", deadline_ms=1).status_code in (503, 504)
    assert stack.score("one with too much to explain", 8, explain=True).status_code == 200
    numbers = count()

    def measured() -> bool:
        assert stack.score(f"one of those lists {next(numbers)}", 200).status_code == 200
        return (stack.watching.value("max(notegrade_service_rate_tokens)") or 0) > 0

    wait_until(measured, within_s=120)
    stack.ask_all()
    stack.watching.wait_for_scrapes()
    return time.time()


@dataclass(frozen=True)
class Overloaded:
    """What callers and people were told of it, and of its end."""

    statuses: set[int]
    sources: set[str]
    firing: list[tuple[str, dict[str, Any]]]
    resolved: list[tuple[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def overloaded(stack: Stack, strained: float) -> Overloaded:
    """Far more is asked for than can be done until somebody is told; then nothing but what is in the caches until that is over."""
    alert, numbers = {"alertname": "NotegradeShedding"}, count()
    statuses: set[int] = set()

    def told_in_a_flood() -> bool:
        with ThreadPoolExecutor(8) as pool:
            queries = [f"one of a flood {next(numbers)}" for _ in range(8)]
            statuses.update(pool.map(lambda query: stack.score(query, 200).status_code, queries))
        return bool(stack.receiver.has("firing", **alert))

    def told_over_in_a_calm() -> bool:
        answers.append(stack.score(QUERIES[0], 200).json()["results"])
        return bool(stack.receiver.has("resolved", **alert))

    answers: list[list[dict[str, Any]]] = []
    wait_until(told_in_a_flood, within_s=120)
    wait_until(told_over_in_a_calm, within_s=120)
    return Overloaded(
        statuses,
        {result["source"] for result in answers[-1]},
        stack.receiver.has("firing", **alert),
        stack.receiver.has("resolved", **alert),
    )


@pytest.fixture(scope="module")
def without_engine(stack: Stack, overloaded: Overloaded) -> list[tuple[str, dict[str, Any]]]:
    """What the pager was told when the engine's process of one replica had been killed; the replica is back."""
    service = stack.replicas[VICTIM].running()
    engine_core(service).kill()
    alert = {"alertname": "NotegradeEngineLost", "instance": stack.instance(VICTIM)}
    wait_until(lambda: bool(stack.receiver.has("firing", **alert)), within_s=120)
    assert exit_code(service, within_s=120) == 1
    stack.replicas[VICTIM].running()
    stack.router.wait_for()
    return stack.receiver.has("firing", **alert)


def test_equal_queries_reach_one_replica_and_its_cache(well: Well, stack: Stack) -> None:
    assert {answer.replica for answer in well.first.values()} == set(stack.replicas)
    assert well.again == {query: Answer(answer.replica, "local") for query, answer in well.first.items()}
    assert {answer.source for answer in well.first.values()} == {"engine"}


def test_explanations_are_written_wherever_they_are_asked_for(well: Well) -> None:
    """The mode was turned on at one replica, by way of HAProxy."""
    assert set(well.explained) == {"made"}


def test_the_replicas_count_what_was_sent(well: Well) -> None:
    assert well.counted == well.sent
    assert well.counted_pairs == well.pairs


def test_no_alert_fires_while_all_is_well(well: Well) -> None:
    assert well.fired == set()


def test_all_answers_are_of_the_checkpoint(stack: Stack, bereft: Bereft, checkpoint: Path) -> None:
    fingerprint = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))["fingerprint"]
    assert stack.fingerprints == {fingerprint}
    query = "count by (fingerprint) (notegrade_build_info)"
    assert stack.watching.values(query, "fingerprint") == {fingerprint: len(stack.replicas)}


def test_only_what_was_open_on_the_killed_one_is_lost(bereft: Bereft) -> None:
    assert len(bereft.open_on_it) == 3
    assert set(bereft.open_on_it) <= {502, None}
    # All others were answered, and none by two.
    assert bereft.counted == bereft.answered


def test_its_queries_move_and_are_in_redis(well: Well, bereft: Bereft) -> None:
    for query, (replica, source) in bereft.at_once.items():
        if well.first[query].replica == VICTIM:
            assert replica != VICTIM
            assert source == "redis"
        else:
            assert (replica, source) == well.again[query]
    for query, (replica, source) in bereft.settled.items():
        # Until a check of HAProxy's has failed, it may give them to another than afterwards.
        assert source == ("local" if replica == bereft.at_once[query].replica else "redis")


def test_they_are_its_own_again_when_it_is_back(well: Well, bereft: Bereft) -> None:
    assert bereft.back == {
        query: Answer(VICTIM, "redis") if answer.replica == VICTIM else answer
        for query, answer in well.again.items()
    }


def test_the_pager_is_told_of_it_and_that_it_is_over(stack: Stack, bereft: Bereft) -> None:
    """And of nothing else."""
    seen = [
        (path, alert["status"], alert["labels"]["alertname"], alert["labels"]["instance"])
        for path, alert in bereft.alerts
    ]
    instance = stack.instance(VICTIM)
    assert set(seen) == {
        ("/pager", status, "NotegradeTargetDown", instance) for status in ("firing", "resolved")
    }
    _, alert = bereft.alerts[0]
    assert alert["annotations"]["summary"] == f"{instance} can't be scraped"
    assert (
        (ROOT / alert["annotations"]["runbook_url"])
        .read_text(encoding="utf-8")
        .startswith("# A replica can't be scraped")
    )


# Nothing here has a shadow: that dashboard is drawn in test_dashboards.py.
@pytest.mark.parametrize("name", [name for name in DASHBOARDS if name != "shadow"])
def test_panels_draw_it(stack: Stack, well: Well, strained: float, name: str) -> None:
    empty = {query.panel for query in empty_queries(name, stack.watching, well.begun, strained)}
    assert empty <= UNDRAWN


def test_an_overload_is_told_and_told_over(overloaded: Overloaded) -> None:
    """Callers get what can be done, or are told when to come again."""
    assert overloaded.statuses <= {200, 503}
    assert overloaded.sources == {"local"}
    for told in (overloaded.firing, overloaded.resolved):
        [(path, alert)] = told
        assert path == "/tickets"
        assert (ROOT / "deploy" / "runbooks" / "overload.md").name in alert["annotations"]["runbook_url"]


def test_a_killed_engine_is_told_to_the_pager(
    stack: Stack, without_engine: list[tuple[str, dict[str, Any]]]
) -> None:
    """By name, and the replica is back behind the balancer."""
    assert {path for path, _ in without_engine} == {"/pager"}
    assert {alert["annotations"]["summary"] for _, alert in without_engine} == {
        f"{stack.instance(VICTIM)} lost its engine"
    }
    assert stack.ask_all().keys() == set(QUERIES)
