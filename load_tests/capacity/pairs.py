"""How many of the pairs that are asked for have been scored before, by formula, under the independent reference model.

Both tiers of the cache keep all pairs of a query together and drop them together: the least recently used query makes room
(`service.caches.memory_cache`, and Redis with `allkeys-lru`), and a query's time to live runs from its first pair on and is not
prolonged. So the formulas are Che's approximation for queries rather than pairs (H. Che et al., "Hierarchical Web caching
systems", IEEE JSAC 2002): a query stays until nobody has asked for it during a characteristic time T, the same for all, which is
such that what is kept fills the cache. Times are in requests.
"""

import math
from dataclasses import dataclass

import numpy as np

from load_tests.capacity.traffic import Array, Pairs, solve


@dataclass(frozen=True, slots=True)
class PairCache:
    """Most pairs in it, and the time to live in requests; both may be infinite."""

    pairs: float = math.inf
    ttl_requests: float = math.inf


def present(pairs: Pairs, cache: PairCache) -> Array:
    """The chance that the cache knows each pair, after so long that it has forgotten how it began.

    What is asked for at random moments finds what is there on average, so this is the hit rate of each pair as well.
    """
    in_time = _until_ttl(pairs, cache.ttl_requests)
    if pairs.total(in_time) <= cache.pairs:
        return in_time

    def kept(unused: float) -> float:
        return pairs.total(np.minimum(in_time, _until_unused(pairs, unused)))

    return np.minimum(in_time, _until_unused(pairs, solve(kept, cache.pairs)))


def _until_unused(pairs: Pairs, requests: float) -> Array:
    """Queries go once nobody has asked for them that long."""
    # How many requests a stay has is geometric: each is followed by the next in time with chance `again`.
    again = -np.expm1(-pairs.query * requests)
    known = again * pairs.note
    return _share(known, np.exp(-pairs.query * requests) + known)


def _until_ttl(pairs: Pairs, ttl: float) -> Array:
    """Queries go that long after they came; the next request for one begins anew."""
    if math.isinf(ttl):
        return _sooner_or_later(pairs)
    # A stay is the request that begins it and a Poisson number of others: `times` requests for the pair after the first one.
    times = pairs.query * pairs.note * ttl
    asked = pairs.note * (1 + pairs.query * ttl)
    # asked - missed, where missed = 1 - (1 - note) exp(-times) without the cancellation.
    known = _above_line(times) - pairs.note * np.expm1(-times)
    return _share(known, asked)


def _share(known: Array, asked: Array) -> Array:
    """0 for notes that are never drawn."""
    return np.divide(known, asked, out=np.zeros_like(known), where=asked > 0)


def _sooner_or_later(pairs: Pairs) -> Array:
    return np.sign(pairs.query * pairs.note)


def _above_line(x: Array) -> Array:
    """x - 1 + exp(-x), which is about x^2 / 2."""
    return np.where(x < 1e-4, x * x / 2 - x**3 / 6, x + np.expm1(-x))


def present_after(pairs: Pairs, requests: float) -> Array:
    """The chance that a pair came in that many requests: what a cache that forgets nothing knows by then."""
    if math.isinf(requests):
        return _sooner_or_later(pairs)
    return -np.expm1(requests * _log_unseen(pairs))


def _log_unseen(pairs: Pairs) -> Array:
    # A pair that every request holds is unseen in none.
    with np.errstate(divide="ignore"):
        return np.log1p(-pairs.query * pairs.note)


def hit_rate_between(pairs: Pairs, first: float, last: float) -> float:
    """Share of known pairs among those of the requests `first` to `last`, counted from an empty cache."""
    new = pairs.total(present_after(pairs, last) - present_after(pairs, first))
    return 1 - new / ((last - first) * pairs.per_request)
