"""Draws requests as the capacity model assumes them, to compare with its formulas."""

import random
from collections.abc import Iterator

from load_tests.bench.workloads import zipf_ranks
from load_tests.capacity.replay import Request
from load_tests.capacity.traffic import Traffic


def drawn_requests(traffic: Traffic, count: int, seed: int) -> Iterator[Request]:
    """Draw requests; notes that always come with a query are named after it."""
    rng = random.Random(seed)
    queries = zipf_ranks(rng, traffic.queries, traffic.query_exponent)
    notes = zipf_ranks(rng, traffic.notes, traffic.note_exponent)
    own = round(traffic.own_share * traffic.notes_per_request)
    for _ in range(count):
        query, chosen = next(queries), dict.fromkeys(range(-own, 0))
        while len(chosen) < traffic.notes_per_request:
            chosen[next(notes)] = None
        yield query, [(query, note) if note < 0 else note for note in chosen]
