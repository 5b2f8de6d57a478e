"""Computes hit rates of the pair cache by formula, under the independent reference model.

Both tiers of the cache keep and drop all pairs of a query together. They evict the least recently used query
(`service.caches.memory_cache`, and Redis with `volatile-lru`), and a query's time to live starts with its first pair and is not
extended. So the formulas are Che's approximation for queries instead of pairs (H. Che et al., "Hierarchical Web caching systems",
IEEE JSAC 2002): a query is evicted once nobody has requested it for a characteristic time T, the same for all queries, for which
the kept pairs fill the cache. Times are in requests.
"""

import math
from dataclasses import dataclass

import numpy as np

from load_tests.capacity.traffic import Array, Pairs, solve


@dataclass(frozen=True, slots=True)
class PairCache:
    """The cache's capacity in pairs and time to live in requests; both may be infinite."""

    pairs: float = math.inf
    ttl_requests: float = math.inf


def present(pairs: Pairs, cache: PairCache) -> Array:
    """Compute the probability that each pair is cached, in the steady state.

    Requests arrive at random times, so this is each pair's hit rate as well.
    """
    in_time = _until_ttl(pairs, cache.ttl_requests)
    if pairs.total(in_time) <= cache.pairs:
        return in_time

    def kept(unused: float) -> float:
        return pairs.total(np.minimum(in_time, _until_unused(pairs, unused)))

    return np.minimum(in_time, _until_unused(pairs, solve(kept, cache.pairs)))


def _until_unused(pairs: Pairs, requests: float) -> Array:
    """Compute the hit rates if queries are evicted once nobody has requested them for that long."""
    # The number of requests of a stay is geometric: each is followed by another in time with probability `again`.
    again = -np.expm1(-pairs.query * requests)
    known = again * pairs.note
    return _share(known, np.exp(-pairs.query * requests) + known)


def _until_ttl(pairs: Pairs, ttl: float) -> Array:
    """Compute the hit rates if queries expire that long after their first request."""
    if math.isinf(ttl):
        return _eventually(pairs)
    # A stay is its first request and a Poisson number of others, `times` of which on average ask for the pair.
    times = pairs.query * pairs.note * ttl
    asked = pairs.note * (1 + pairs.query * ttl)
    # asked - missed, with missed = 1 - (1 - note) exp(-times), in a form without cancellation.
    known = _exp_remainder(times) - pairs.note * np.expm1(-times)
    return _share(known, asked)


def _share(known: Array, asked: Array) -> Array:
    """Divide, with 0 for notes that are never drawn."""
    return np.divide(known, asked, out=np.zeros_like(known), where=asked > 0)


def _eventually(pairs: Pairs) -> Array:
    return np.sign(pairs.query * pairs.note)


def _exp_remainder(x: Array) -> Array:
    """Compute x - 1 + exp(-x), which is about x^2 / 2 for small x."""
    return np.where(x < 1e-4, x * x / 2 - x**3 / 6, x + np.expm1(-x))


def present_after(pairs: Pairs, requests: float) -> Array:
    """Compute the probability that each pair occurred in that many requests, as in a cache that never evicts."""
    if math.isinf(requests):
        return _eventually(pairs)
    return -np.expm1(requests * _log_unseen(pairs))


def _log_unseen(pairs: Pairs) -> Array:
    # log(0) for a pair that is in every request.
    with np.errstate(divide="ignore"):
        return np.log1p(-pairs.query * pairs.note)


def hit_rate_between(pairs: Pairs, first: float, last: float) -> float:
    """Compute the hit rate over the requests `first` to `last`, counted from an empty cache."""
    new = pairs.total(present_after(pairs, last) - present_after(pairs, first))
    return 1 - new / ((last - first) * pairs.per_request)
