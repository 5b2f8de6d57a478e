"""Models how hit rate, prefix reuse and speed grow from empty caches, by the number of served pairs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from load_tests.capacity.model import Caching, Site, replica_limits
from load_tests.capacity.pairs import present_after
from load_tests.capacity.prefix import found_after
from load_tests.capacity.traffic import Pairs, Traffic, pairs_of

SERVED = (0, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)


@dataclass(frozen=True, slots=True)
class Moment:
    """The state after `served` pairs, with a pair cache that never evicts.

    Attributes:
        caching: the hit rate, and the share of new pairs whose note (or query) is in the prefix cache.
        tokens: computed tokens per requested note, including hits.
        arithmetic: the operations per note at the start over those now.
        speed_up: a replica's notes per second, with HTTP and everything else, over those at the start.
    """

    served: int
    caching: Caching
    tokens: float
    arithmetic: float
    speed_up: float


def growth(traffic: Traffic, site: Site, served: Sequence[int] = SERVED) -> list[Moment]:
    """Compute the state at each number of served pairs."""
    pairs = pairs_of(traffic)
    start = _caching(pairs, 0, site)
    return [_moment(count, _caching(pairs, count, site), start, traffic, site) for count in served]


def _caching(pairs: Pairs, served: int, site: Site) -> Caching:
    requests = served / pairs.per_request
    hit_rate = pairs.mean(present_after(pairs, requests))
    room = site.engine.prefix_cache(site.device, site.model)
    return Caching(hit_rate, found_after(pairs, requests, site.prompt, room))


def _moment(served: int, now: Caching, start: Caching, traffic: Traffic, site: Site) -> Moment:
    rates = [
        min(replica_limits(site, caching, traffic.notes_per_request).values()) for caching in (now, start)
    ]
    tokens = (1 - now.hit_rate) * (site.prompt.tokens - site.prompt.reused(now.found))
    left = _flops(now, site)
    arithmetic = _flops(start, site) / left if left else math.inf
    return Moment(served, now, tokens, arithmetic, rates[0] / rates[1])


def _flops(caching: Caching, site: Site) -> float:
    """Count the operations per requested note."""
    reused = site.prompt.reused(caching.found)
    return (1 - caching.hit_rate) * site.model.flops(site.prompt.tokens, reused)
