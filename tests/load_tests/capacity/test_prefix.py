"""The reused share of prompts equals hand-computed, simulated and measured values."""

import math
from dataclasses import replace

import pytest

from load_tests.capacity.pairs import PairCache, present
from load_tests.capacity.prefix import Order, Prompt, found_after, found_steadily
from load_tests.capacity.replay import replay_requests
from load_tests.capacity.traffic import Traffic, pairs_of
from tests.load_tests.capacity.drawing import drawn_requests

TRAFFIC = Traffic(queries=2_000, notes=5_000)
# Here a note (or query) has one token, and nothing else has any.
ONE_TOKEN = {
    "note-first": Prompt(0, 1, 0, "note-first", block=1),
    "query-first": Prompt(0, 0, 1, "query-first", block=1),
}


def test_shared_blocks_match_a_case_computed_by_hand() -> None:
    prompt = Prompt(head=40, note=60, query=20, block=16)
    assert (prompt.shared_head, prompt.shared, prompt.tail) == (32, 96, 16)
    assert [prompt.reused(found) for found in (0, 0.5, 1)] == [32, 64, 96]
    turned = replace(prompt, order="query-first")
    assert (turned.shared, turned.tail) == (48, 64)


def test_varying_lengths_lose_half_a_block_on_average() -> None:
    prompt = Prompt(head=40, note=200, query=20, block=16, note_sd=60)
    assert prompt.shared == pytest.approx(240 - 7.5, abs=0.5)
    short = Prompt(head=40, note=2, query=1, block=16, note_sd=1)
    assert short.shared == pytest.approx(short.shared_head)


@pytest.mark.parametrize("order", ["note-first", "query-first"])
@pytest.mark.parametrize("room", [100, 1_000, math.inf])
def test_formula_agrees_with_a_simulation(order: Order, room: float) -> None:
    pairs, prompt = pairs_of(TRAFFIC), ONE_TOKEN[order]
    seen = replay_requests(drawn_requests(TRAFFIC, 2_300, seed=2), PairCache(), room, count_from=1_700)
    assert found_after(pairs, 2_000, prompt, room) == pytest.approx(seen.found(order), abs=0.03)
    cache = PairCache(20_000)
    seen = replay_requests(drawn_requests(TRAFFIC, 8_000, seed=3), cache, room, count_from=4_000)
    steadily = found_steadily(pairs, present(pairs, cache), prompt, room)
    # The notes that one query misses are less independent of each other than the formula assumes.
    assert steadily == pytest.approx(seen.found(order), abs=0.06)


def test_unshared_blocks_use_space_too() -> None:
    pairs = pairs_of(TRAFFIC)
    known, room = present(pairs, PairCache(20_000)), 1_000
    alone = found_steadily(pairs, known, ONE_TOKEN["note-first"], room)
    beside = found_steadily(pairs, known, Prompt(0, 1, 1, "note-first", block=1), room)
    assert 0 < beside < alone


def test_first_request_shares_only_its_query() -> None:
    pairs = pairs_of(TRAFFIC)
    assert found_after(pairs, 0, ONE_TOKEN["note-first"], math.inf) == 0
    assert found_after(pairs, 0, ONE_TOKEN["query-first"], math.inf) == pytest.approx(19 / 20)


def test_nothing_is_found_if_nothing_is_computed() -> None:
    pairs = pairs_of(TRAFFIC)
    for prompt in ONE_TOKEN.values():
        assert found_steadily(pairs, present(pairs, PairCache()), prompt, math.inf) == 0


def test_reuse_is_close_to_the_measurement_on_two_cores() -> None:
    """docs/decisions/0007-note-first.md measured 34 % of 188 tokens without repeated notes, 66 % with Zipf over 40 notes."""
    prompt = Prompt(head=78, note=90, query=20, block=32, note_sd=45, query_sd=2)
    pairs = pairs_of(Traffic(queries=10**9, notes=40, query_exponent=0))
    found = [found_after(pairs, request, prompt, math.inf) for request in range(6)]
    assert prompt.reused(0) / prompt.tokens == pytest.approx(0.34, abs=0.01)
    assert prompt.reused(sum(found) / 6) / prompt.tokens == pytest.approx(0.66, abs=0.05)
