"""Models how hit rate, prefix reuse and speed grow from empty caches, by the number of served pairs."""

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
        speed_up: a replica's notes per second over those at the start.
    """

    served: int
    caching: Caching
    tokens: float
    speed_up: float


def growth(traffic: Traffic, site: Site, served: Sequence[int] = SERVED) -> list[Moment]:
    """Compute the state at each number of served pairs."""
    pairs = pairs_of(traffic)
    start = _rate(traffic, site, _caching(pairs, 0, site))
    moments = []
    for count in served:
        now = _caching(pairs, count, site)
        tokens = (1 - now.hit_rate) * (site.prompt.tokens - site.prompt.reused(now.found))
        moments.append(Moment(count, now, tokens, _rate(traffic, site, now) / start))
    return moments


def _caching(pairs: Pairs, served: int, site: Site) -> Caching:
    requests = served / pairs.per_request
    hit_rate = pairs.mean(present_after(pairs, requests))
    return Caching(hit_rate, found_after(pairs, requests, site.prompt, site.prefix_cache_tokens))


def _rate(traffic: Traffic, site: Site, caching: Caching) -> float:
    return min(replica_limits(site, caching, traffic.notes_per_request).values())
