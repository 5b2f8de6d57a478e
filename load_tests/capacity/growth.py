"""From empty caches to full ones: what hits and reuse there are after so many pairs, and how much faster that is."""

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
    """After `served` pairs; the pair cache forgets nothing.

    Attributes:
        caching: the hit rate at this moment, and the share of new pairs whose note (or query) the engine has.
        tokens: that are computed for a note which is asked for, hits included.
        arithmetic: how many times less is computed for a note than at the start.
        speed_up: how many times more notes a second a replica can score than at the start, with HTTP and all else.
    """

    served: int
    caching: Caching
    tokens: float
    arithmetic: float
    speed_up: float


def growth(traffic: Traffic, site: Site, served: Sequence[int] = SERVED) -> list[Moment]:
    """At each of these numbers of pairs."""
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
    """For a note that is asked for."""
    reused = site.prompt.reused(caching.found)
    return (1 - caching.hit_rate) * site.model.flops(site.prompt.tokens, reused)
