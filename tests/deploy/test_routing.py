"""The files of deploy/routing work in a real HAProxy, in front of services on a fake engine, over real sockets."""

import random
import re
import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from service.contract.checkpoint import Checkpoint
from tests.checkpoints import load_tiny
from tests.deploy.haproxy_rig import (
    BY_QUERY,
    EXPERIMENT,
    ROUTING,
    Router,
    answered,
    replica_addresses,
    routed,
)
from tests.http_server import receiving
from tests.processes import ROOT, output_of
from tests.served import Served, served
from tests.tools import HAPROXY, require
from tests.waiting import wait_until

REPLICAS = ("replica1", "replica2", "replica3")
QUERIES = [f"quiet cafes near station {number}" for number in range(60)]
# The service ends with a second SIGTERM.
DRAIN_DELAY_S = 600


@contextmanager
def three_replicas(checkpoint: Checkpoint) -> Iterator[dict[str, Served]]:
    with ExitStack() as services:
        yield {
            name: services.enter_context(served(checkpoint, drain_delay_s=DRAIN_DELAY_S)) for name in REPLICAS
        }


def addresses(replicas: Mapping[str, Served]) -> dict[str, str]:
    return replica_addresses(replica.url.removeprefix("http://") for replica in replicas.values())


@dataclass
class Cluster:
    replicas: dict[str, Served]
    router: Router


@pytest.fixture
def cluster(checkpoint: Checkpoint, tmp_path: Path) -> Iterator[Cluster]:
    with (
        three_replicas(checkpoint) as replicas,
        routed(tmp_path, BY_QUERY, addresses(replicas)) as router,
    ):
        router.wait_for()
        yield Cluster(replicas, router)


def test_equal_queries_reach_the_same_replica(cluster: Cluster) -> None:
    first = {query: cluster.router.replica_of(query) for query in QUERIES}
    assert {query: cluster.router.replica_of(query, notes=3) for query in reversed(QUERIES)} == first
    # No replica has twice its share.
    shares = [list(first.values()).count(replica) for replica in REPLICAS]
    print("queries by replica:", shares)
    assert min(shares) > 0
    assert max(shares) < 2 * len(QUERIES) / len(REPLICAS)


@pytest.mark.parametrize("padding", [0, 50_000], ids=["small", "larger than HAProxy's buffer"])
def test_without_a_header_the_query_in_the_body_decides(cluster: Cluster, padding: int) -> None:
    first = {query: cluster.router.score(query).headers["x-replica"] for query in QUERIES}
    again = {query: answered(cluster.router.score(query, 2, padding)).headers["x-replica"] for query in first}
    assert again == first
    assert set(first.values()) == set(REPLICAS)


def test_two_routers_agree_whatever_the_order_of_their_replicas(cluster: Cluster, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    turned = dict(zip(REPLICAS, reversed(cluster.replicas.values()), strict=True))
    with routed(other, BY_QUERY, addresses(turned)) as second:
        second.wait_for()
        names = dict(zip(REPLICAS, reversed(REPLICAS), strict=True))
        for query in QUERIES:
            assert names[second.replica_of(query)] == cluster.router.replica_of(query)


def test_only_the_queries_of_a_lost_replica_move(cluster: Cluster) -> None:
    before = {query: cluster.router.replica_of(query) for query in QUERIES}
    gone = cluster.replicas["replica2"]
    gone.server.force_exit = gone.server.should_exit = True
    gone.thread.join(30)
    # Before any check has failed, no request fails either: one that reached no replica is retried on another.
    after = {query: cluster.router.replica_of(query) for query in QUERIES}
    cluster.router.wait_for(down="replica2")
    settled = {query: cluster.router.replica_of(query) for query in QUERIES}
    for moved in (after, settled):
        assert {query for query in QUERIES if moved[query] != before[query]} == {
            query for query in QUERIES if before[query] == "replica2"
        }
    # The queries are spread over both other replicas.
    assert {settled[query] for query in QUERIES if before[query] == "replica2"} == {"replica1", "replica3"}


def test_a_draining_replica_gets_no_new_requests_and_none_fails(cluster: Cluster) -> None:
    router, draining = cluster.router, cluster.replicas["replica1"]
    before = {query: router.replica_of(query) for query in QUERIES}
    query = next(query for query in QUERIES if before[query] == "replica1")
    draining.engine.hold()
    with ThreadPoolExecutor(4) as pool:
        # This request is open when the replica gets the stop signal, and ends long after HAProxy took the replica out.
        open_requests = [pool.submit(router.replica_of, query, notes=number) for number in range(2, 5)]
        wait_until(lambda: draining.engine.in_flight == 3)  # notes that are not cached
        draining.server.handle_exit(signal.SIGTERM, None)

        def heard_while_all_go_on() -> bool:
            # Until HAProxy notices, the replica still answers; only its own queries move.
            for each in QUERIES:
                assert before[each] in (router.replica_of(each), "replica1")
            return not router.is_up("replica1")

        wait_until(heard_while_all_go_on)
        received = draining.count("pair_outcomes_total", outcome="scored")
        assert "replica1" not in {router.replica_of(query) for query in QUERIES}
        assert draining.count("pair_outcomes_total", outcome="scored") == received
        draining.engine.let_go()
        assert [each.result() for each in open_requests] == ["replica1"] * 3
    draining.server.handle_exit(signal.SIGTERM, None)
    draining.thread.join(30)
    assert {router.replica_of(query) for query in QUERIES} == {"replica2", "replica3"}


@contextmanager
def failing(status: int | None, asked: list[str]) -> Iterator[str]:
    """Run a server that is ready and answers requests with the status, or closes the connection; yields its address."""

    def receive(path: str, _body: bytes) -> int | None:
        asked.append(path)
        return status

    with receiving(receive) as url:
        yield url.removeprefix("http://")


@pytest.mark.parametrize(("status", "seen"), [(None, 502), (503, 503)], ids=["it breaks off", "503"])
def test_a_request_that_a_replica_received_is_not_retried(
    tmp_path: Path, status: int | None, seen: int
) -> None:
    asked: list[str] = []
    with ExitStack() as replicas:
        where = replica_addresses(replicas.enter_context(failing(status, asked)) for _ in REPLICAS)
        with routed(tmp_path, BY_QUERY, where) as router:
            router.wait_for()
            assert router.score("quiet cafes").status_code == seen
    assert asked == ["/score"]


def local_hits(replicas: Mapping[str, Served]) -> float:
    """Return the share of pairs found in the replicas' local caches."""

    def count(result: str) -> float:
        return sum(
            each.count("cache_operations_total", tier="local", result=result) for each in replicas.values()
        )

    return count("hit") / (count("hit") + count("miss"))


def test_local_caches_have_more_hits_than_with_round_robin(checkpoint: Checkpoint, tmp_path: Path) -> None:
    # Repeated queries as in real traffic: a few often, many rarely.
    chance = random.Random(1)
    ranks = range(1, 301)
    asked = chance.choices([f"query {rank}" for rank in ranks], [1 / rank for rank in ranks], k=900)
    by_turns = BY_QUERY.replace("balance hash var(txn.query)", "balance roundrobin")
    assert by_turns != BY_QUERY
    found = {}
    for name, config in {"hashing": BY_QUERY, "round robin": by_turns}.items():
        with (
            three_replicas(checkpoint) as replicas,
            routed(tmp_path, config, addresses(replicas)) as router,
        ):
            router.wait_for()
            for query in asked:
                router.replica_of(query, notes=3)
            found[name] = local_hits(replicas)
    best = 1 - len(set(asked)) / len(asked)
    rates = ", ".join(f"{name} {rate:.3f}" for name, rate in found.items())
    print(f"local cache hit rate: {rates}; best {best:.3f}")
    assert found["hashing"] > found["round robin"]
    # Each pair is computed once in total, which is the optimum.
    assert found["hashing"] == pytest.approx(best)


def arm_of(router: Router, unit: str) -> str:
    """Return the arm whose checkpoint the answer names."""
    response = answered(router.score("quiet cafes", headers={"X-Experiment-Unit": unit}))
    name = response.json()["model"]["name"]
    assert response.headers["x-experiment-arm"] == name
    return str(name)


@contextmanager
def experiment(folder: Path, arms: dict[str, Served], percent: int) -> Iterator[Router]:
    environment = {f"{name.upper()}_1": arm.url.removeprefix("http://") for name, arm in arms.items()}
    environment["TREATMENT_PERCENT"] = str(percent)
    with routed(folder, EXPERIMENT, environment) as router:
        router.wait_for()
        yield router


@pytest.fixture
def arms(tmp_path: Path) -> Iterator[dict[str, Served]]:
    with ExitStack() as services:
        yield {
            name: services.enter_context(
                served(load_tiny(tmp_path / name, name=name), drain_delay_s=DRAIN_DELAY_S)
            )
            for name in ("control", "treatment")
        }


def test_an_experiment_splits_by_percentage_and_units_stay(arms: dict[str, Served], tmp_path: Path) -> None:
    units = [f"user-{number}" for number in range(600)]
    treated: dict[int, set[str]] = {}
    for percent in (10, 30):
        with experiment(tmp_path, arms, percent) as router:
            treated[percent] = {unit for unit in units if arm_of(router, unit) == "treatment"}
            again = random.Random(2).sample(units, 100)
            treated_again = {unit for unit in again if arm_of(router, unit) == "treatment"}
            assert treated_again == treated[percent] & set(again)
        share, expected = len(treated[percent]) / len(units), percent / 100
        print(f"treatment at {percent} %: {share:.1%} of {len(units)} units")
        # Within four standard deviations of the expected share.
        assert share == pytest.approx(expected, abs=4 * (expected * (1 - expected) / len(units)) ** 0.5)
    # A larger percentage adds units and removes none.
    assert treated[10] < treated[30]


def test_requests_without_a_unit_get_the_control(arms: dict[str, Served], tmp_path: Path) -> None:
    with experiment(tmp_path, arms, 99) as router:
        for query in QUERIES[:20]:
            assert answered(router.score(query)).json()["model"]["name"] == "control"


def test_the_control_answers_while_the_treatment_is_down(arms: dict[str, Served], tmp_path: Path) -> None:
    with experiment(tmp_path, arms, 100) as router:
        assert arm_of(router, "user-1") == "treatment"
        arms["treatment"].server.force_exit = arms["treatment"].server.should_exit = True
        router.wait_for(down="treatment1")
        assert arm_of(router, "user-1") == "control"


def test_replicas_are_discovered_by_dns(tmp_path: Path) -> None:
    """The configuration has the line from docs/kubernetes.md instead of the three `server` lines."""
    page = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    [written] = re.findall(r"```haproxy\n(.*?)```", page, re.DOTALL)
    resolvers, template = written.split("\n\n")
    config = re.sub(r"^    server replica\d .*\n", "", BY_QUERY, flags=re.MULTILINE)
    whole = tmp_path / "routing.cfg"
    whole.write_text(f"{resolvers}\n\n{config}    {template.strip()}\n")
    files = ("-f", str(ROUTING / "defaults.cfg"), "-f", str(whole))
    listening = {"LISTEN": "127.0.0.1:8080", "METRICS_LISTEN": "127.0.0.1:8405"}
    output_of(require(HAPROXY), "-c", *files, within_s=60, **listening)
