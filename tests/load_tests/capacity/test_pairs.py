"""Hit rates by formula equal those of a simulation, and the simulated cache behaves like the service's."""

import asyncio
import math
import random
import statistics

import pytest

from load_tests.capacity.pairs import (
    PairCache,
    hit_rate_between,
    present,
    present_after,
)
from load_tests.capacity.replay import replay_requests
from load_tests.capacity.traffic import Traffic, pairs_of
from service.caches.memory_cache import MemoryCache
from tests.load_tests.capacity.drawing import drawn_requests

SMALL = Traffic(queries=500, notes=1_000, notes_per_request=5)
OWN = Traffic(500, 1_000, query_exponent=0.8, note_exponent=1.2, notes_per_request=10, own_share=0.5)
ALL_OWN = Traffic(500, 1_000, query_exponent=0.8, notes_per_request=10, own_share=1.0)


@pytest.mark.parametrize("traffic", [SMALL, OWN, ALL_OWN])
@pytest.mark.parametrize(
    "cache",
    [PairCache(pairs=2_000), PairCache(ttl_requests=1_500), PairCache(2_000, 1_500), PairCache(700, 3_000)],
)
def test_formula_agrees_with_a_simulation(traffic: Traffic, cache: PairCache) -> None:
    pairs = pairs_of(traffic)
    known = present(pairs, cache)
    seen = replay_requests(drawn_requests(traffic, 14_000, seed=4), cache, count_from=6_000)
    assert pairs.mean(known) == pytest.approx(seen.hit_rate, abs=0.03)
    assert pairs.total(known) == pytest.approx(seen.pairs_kept, rel=0.12)


def test_formula_agrees_with_a_simulation_from_empty_caches() -> None:
    traffic = Traffic(queries=2_000, notes=5_000)
    pairs = pairs_of(traffic)
    for first, last in ((0, 100), (100, 1_000), (1_000, 2_000)):
        runs = (drawn_requests(traffic, last, seed) for seed in range(4))
        seen = [replay_requests(run, PairCache(), count_from=first).hit_rate for run in runs]
        assert hit_rate_between(pairs, first, last) == pytest.approx(statistics.fmean(seen), abs=0.02)


def test_hit_rate_of_one_query_and_note_matches_a_case_computed_by_hand() -> None:
    always = pairs_of(Traffic(queries=1, notes=1, notes_per_request=1))
    # The pair is requested every time and evicted after three more requests on average: one of four is a miss.
    assert always.mean(present(always, PairCache(ttl_requests=3))) == pytest.approx(3 / 4)
    assert always.mean(present_after(always, 1)) == pytest.approx(1)
    # Two equally frequent queries, and room for one: every other request repeats the previous query.
    two = pairs_of(Traffic(queries=2, notes=1, query_exponent=0, notes_per_request=1))
    assert two.mean(present(two, PairCache(pairs=1))) == pytest.approx(0.5)
    assert hit_rate_between(two, 0, 2) == pytest.approx((0 + 0.5) / 2)


def test_more_space_time_or_traffic_never_lowers_the_hit_rate() -> None:
    pairs = pairs_of(OWN)
    rooms, times = (10, 100, 1_000, 10_000, math.inf), (1, 10, 100, 1_000, 100_000)
    by_room = [pairs.mean(present(pairs, PairCache(room, 2_000))) for room in rooms]
    by_time = [pairs.mean(present(pairs, PairCache(ttl_requests=ttl))) for ttl in times]
    for rising in (by_room, by_time):
        assert rising == sorted(rising)
        assert rising[0] < rising[-1]
    assert all(0 < hit_rate < 1 for hit_rate in by_room)


def test_more_time_may_lower_the_hit_rate_of_a_full_cache() -> None:
    """Without expiry, popular queries keep all their notes and push out other queries: the formula is right."""
    by_time = []
    for ttl in (1_000, math.inf):
        cache, pairs = PairCache(1_000, ttl), pairs_of(OWN)
        seen = replay_requests(drawn_requests(OWN, 14_000, seed=1), cache, count_from=6_000)
        by_time.append((seen.hit_rate, pairs.mean(present(pairs, cache))))
    assert all(shorter > longer for shorter, longer in zip(*by_time, strict=True))


def test_kept_pairs_fill_the_cache_exactly() -> None:
    pairs = pairs_of(SMALL)
    assert pairs.total(present(pairs, PairCache(3_000))) == pytest.approx(3_000)
    assert pairs.total(present(pairs, PairCache())) == 500 * 1_000


@pytest.mark.parametrize(("room", "ttl"), [(60, math.inf), (10_000, 40), (60, 40), (3, 40)])
def test_simulated_cache_behaves_as_the_service_s(room: int, ttl: float) -> None:
    traffic = Traffic(queries=12, notes=40, notes_per_request=4)
    requests = [
        (str(query), [str(note) for note in notes]) for query, notes in drawn_requests(traffic, 600, 3)
    ]
    seen = replay_requests(requests, PairCache(room, ttl))
    assert seen.hits == asyncio.run(_hits_of_the_service(requests, room, ttl))
    assert 0 < seen.hits < seen.pairs


async def _hits_of_the_service(requests: list[tuple[str, list[str]]], room: int, ttl: float) -> int:
    now = 0.0
    cache, hits = MemoryCache(room, ttl, clock=lambda: now), 0
    for query, notes in requests:
        keys = [note.encode() for note in notes]
        values = (await cache.get_many(query, keys)).values
        hits += sum(value is not None for value in values)
        new = {key: b"" for key, value in zip(keys, values, strict=True) if value is None}
        if new:
            await cache.put_many(query, new)
        now += 1
    return hits


def test_own_notes_of_a_query_hit_as_often_as_the_query() -> None:
    pairs = pairs_of(ALL_OWN)
    rng = random.Random(1)
    for _ in range(5):
        ttl = rng.uniform(10, 5_000)
        known = present(pairs, PairCache(ttl_requests=ttl))
        expected = pairs.query * ttl / (1 + pairs.query * ttl)
        assert known[:, 0] == pytest.approx(expected[:, 0])
