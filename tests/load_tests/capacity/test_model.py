"""The resources for a rate equal those computed by hand."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest

from load_tests.capacity.devices import DEVICES, SMOLLM2_135M, Device, Model
from load_tests.capacity.model import Caching, Site, plan, replica_limits, steady_caching
from load_tests.capacity.prefix import Prompt
from load_tests.capacity.traffic import Traffic

RESULTS = Path(__file__).parents[3] / "load_tests" / "results"
# Two operations per token and nothing else.
UNIT = Model("unit", parameters=1, layers=0, hidden=0, intermediate=0, attention=0, kv=0, vocabulary=0)
DEVICE = Device("device", flops=4_000, bandwidth=math.inf, memory=1e9, price=2.0, source="a test")
PROMPT = Prompt(head=0, note=8, query=2)
SITE = Site(
    DEVICE, PROMPT, UNIT, load=0.5, share=0.5, request_us=0, note_us=0, pair_us=0, core_us=0,
)  # fmt: skip
NEW = Caching(hit_rate=0, found=0)


def test_operations_of_a_pair() -> None:
    # 2 per parameter and token.
    assert UNIT.flops(10, reused=4) == 12
    # 4 layers x attention dimensions, times the attended tokens: 10 x 10 / 2 for a whole prompt.
    attentive = replace(UNIT, parameters=0, layers=3, attention=7)
    assert attentive.flops(10, 0) == 4 * 3 * 7 * 50
    assert attentive.flops(10, 6) == 4 * 3 * 7 * (50 - 18)
    # lm_head, once.
    assert replace(UNIT, parameters=0, hidden=5, vocabulary=11).flops(10, 9) == 2 * 5 * 11


def test_default_model_matches_its_shapes() -> None:
    model = SMOLLM2_135M
    layer = 2 * model.hidden * (model.attention + model.kv) + 3 * model.hidden * model.intermediate
    norms = (2 * model.layers + 1) * model.hidden
    assert model.parameters == model.layers * layer + norms
    assert model.weight_bytes == pytest.approx(2 * 134.5e6, rel=0.001)
    assert model.kv_bytes_per_token == 23_040


def test_replica_rate_is_that_of_its_slowest_part() -> None:
    # The device reaches 2,000 operations per second; a pair takes 20.
    assert replica_limits(SITE, NEW, 4)["arithmetic"] == 100
    assert replica_limits(SITE, Caching(0.75, 0), 4)["arithmetic"] == 400
    busy = replace(SITE, request_us=40_000, note_us=10_000, pair_us=20_000, core_us=50_000)
    limits = replica_limits(busy, Caching(0.5, 0), 4)
    assert limits["front process"] == pytest.approx(1 / (0.01 + 0.01 + 0.01))
    assert limits["engine core process"] == pytest.approx(1 / 0.025)
    # Shared cores do one thing after another: 10 ms for the pair, (10 + 10 + 20 + 50) ms on two cores.
    shared = replace(busy, device=replace(DEVICE, shared_cores=2))
    assert replica_limits(shared, NEW, 4) == {"processor": pytest.approx(1 / (0.01 + 0.045))}


def test_reused_tokens_are_not_computed() -> None:
    blocks = replace(SITE, prompt=Prompt(head=4, note=4, query=2, block=2))
    assert replica_limits(blocks, NEW, 1)["arithmetic"] == pytest.approx(2_000 / 12)
    assert replica_limits(blocks, Caching(0, 1.0), 1)["arithmetic"] == pytest.approx(2_000 / 4)


def test_memory_bandwidth_can_be_the_limit() -> None:
    heavy = replace(UNIT, parameters=1_000, bytes_per_number=2)
    narrow = replace(SITE, model=heavy, device=replace(DEVICE, flops=1e12, bandwidth=200.0))
    # Each of the 10 tokens reads its share of the weights: 2,000 bytes per step of 1,000 tokens.
    narrow = replace(narrow, step_tokens=1_000)
    assert replica_limits(narrow, NEW, 1)["memory bandwidth"] == pytest.approx(200 / (10 * 2))


def test_replicas_and_shared_resources_round_up() -> None:
    # 50 notes per second, at half of a replica's capacity.
    for rate, replicas in ((1, 1), (50, 1), (50.1, 2), (100, 2), (100.1, 3)):
        found = plan(rate, NEW, 4, SITE)
        assert (found.replicas, found.dollars_per_hour) == (replicas, 2.0 * replicas)
    assert (found.replica_rate, found.limit, found.busy) == (100, "arithmetic", 0.5)


def test_first_bottleneck() -> None:
    site = replace(
        SITE, redis_call_us=10_000, redis_note_us=1_000, redis_gb=1e-6, entry_bytes=10, query_bytes=100,
        link_bytes=1e9, note_bytes=1, redis_price=1e9, redis_call_bytes=1_000, redis_note_bytes=10,
    )  # fmt: skip
    small = plan(10, Caching(0, 0, pairs=50, queries=2), 4, site)
    assert small.first == "arithmetic of a replica"
    assert small.redis_bytes == 700
    assert small.dollars_per_hour == 2.0 + 700
    # Two calls of 10 ms for each of 2.5 requests, and 20 notes of 1 ms, at half of the processor.
    assert small.needs["Redis processor"] == pytest.approx(0.14)
    # 5 calls, 10 notes written and 10 not found.
    assert (small.redis_traffic, small.traffic) == (5 * 1_000 + 15 * 10, 10)
    full = plan(10, Caching(0, 0, pairs=500, queries=2), 4, site)
    assert (full.first, full.redis) == ("Redis memory", 6)
    fast = plan(100, Caching(0, 0, pairs=50, queries=2), 4, site)
    assert (fast.first, fast.redis) == ("Redis processor", 2)
    # If every pair is cached, nothing is written.
    cached = plan(100, Caching(1, 0), 4, site)
    assert cached.needs["Redis processor"] == pytest.approx(0.7)
    assert cached.redis_traffic == 25 * 1_000 + 100 * 10


def test_vectors_are_looked_up_for_new_pairs_and_kept_for_all_notes() -> None:
    site = replace(
        SITE, model=replace(UNIT, hidden=10), vectors=3, vectors_note_bytes=40, vectors_note_us=1_000,
        redis_call_us=10_000, redis_note_us=1_000, redis_call_bytes=1_000, redis_note_bytes=10,
    )  # fmt: skip
    found = plan(10, Caching(0.5, 0, notes=7), 1, site)
    # 3 vectors of 10 numbers of two bytes, and 40 bytes, for each of 7 notes.
    assert found.redis_bytes == 7 * 100
    # Each second 10 lookups, 5 writes and 5 lookups of vectors; 10 notes, 5 written, and the vectors of 5.
    assert found.redis_traffic == 20 * 1_000 + (10 + 5 / 2) * 10 + 5 * 100
    assert found.needs["Redis processor"] == pytest.approx((20 * 0.01 + 15 * 0.001 + 5 * 0.001) / 0.5)


def test_a_request_computes_criteria_and_query_once_for_its_vectors() -> None:
    prompt = Prompt(head=31, note=67, query=13, block=16, note_sd=10, query_sd=2).of_vectors(4)
    # 44 tokens are padded to 48, whole blocks; four vectors and the cue of one token follow.
    assert (prompt.tokens, prompt.shared, prompt.order) == (53, 48, "query-first")
    assert prompt.tokens - prompt.reused(1.0) == 5


def test_more_traffic_has_more_hits_and_needs_no_fewer_resources() -> None:
    traffic = Traffic(queries=10**6, notes=10**7)
    site = Site(DEVICES["L4"], Prompt(31, 67, 13))
    rates = (1e3, 1e4, 1e5, 1e6)
    found = [plan(rate, steady_caching(traffic, rate, 86_400, math.inf, site), 20, site) for rate in rates]
    for values in (
        [each.caching.hit_rate for each in found],
        [each.replicas for each in found],
        [each.dollars_per_hour for each in found],
        [each.redis_bytes for each in found],
    ):
        assert values == sorted(values)
        assert values[0] < values[-1]
    # Other tests check the cache's formulas; this one checks that the limit is respected.
    limited = steady_caching(traffic, 1e6, 86_400, 1e7, site)
    assert limited.pairs == pytest.approx(1e7)
    assert limited.hit_rate < found[-1].caching.hit_rate


def test_prefix_cache_size() -> None:
    model = SMOLLM2_135M
    site = Site(DEVICES["L4"], PROMPT, kv_share=0.5)
    assert site.prefix_cache_tokens == pytest.approx(0.5 * (24e9 - model.weight_bytes) / 23_040)
    assert replace(site, kv_gb=0.02304).prefix_cache_tokens == pytest.approx(1_000)


def test_measured_rates_are_those_of_the_bench() -> None:
    rates = DEVICES["2-cores"].rates
    assert rates is not None
    summary = json.loads((RESULTS / "bench-avx512.json").read_text(encoding="utf-8"))["summary"]
    [cold] = [row for row in summary if (row["part"], row["peer"]) == ("cold", "Notegrade")]
    assert rates.new == pytest.approx(cold["pairs_per_s"]["median"], rel=1e-3)
    cached = json.loads((RESULTS / "cached-rate.json").read_text(encoding="utf-8"))["figures"]
    assert rates.known == pytest.approx(median(cached["notes_per_s"]["redis"]), rel=1e-3)
    # 1 / (0.75 / 18.3 + 0.25 / 13,403): new pairs take nearly all of the time.
    site = replace(SITE, device=DEVICES["2-cores"])
    assert replica_limits(site, Caching(0.25, 0), 4) == {"measured rate": pytest.approx(24.39, abs=0.01)}


def test_other_devices_state_their_sources() -> None:
    for device in (device for device in DEVICES.values() if device.rates is None):
        found = re.search(r"data sheet.*: (\d+) TFLOPS bf16( with sparsity)?$", device.source)
        assert found, device.name
        # The dense figure is half of the one with sparsity, up to rounding.
        assert device.flops / 1e12 == pytest.approx(int(found[1]) / (2 if found[2] else 1), abs=1)
