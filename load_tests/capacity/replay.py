"""Simulates the caches request by request, with the eviction rules of the service.

It checks the formulas of `pairs` and `prefix`, and replaces them if there is a log of real traffic.
"""

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from cachetools import LRUCache, TLRUCache

from load_tests.bench.peer import Asked
from load_tests.capacity.model import Caching, Site
from load_tests.capacity.pairs import PairCache
from service.contract.text import canonicalize

Request = tuple[Hashable, Sequence[Hashable]]


@dataclass(frozen=True, slots=True)
class Seen:
    """Counts of a simulation.

    Attributes:
        hits: pairs found in the pair cache.
        notes_found: other pairs whose note was in the prefix cache.
        queries_found: other pairs whose query was in the prefix cache, possibly from the same request.
        pairs_kept, queries_kept: numbers in the pair cache at the end.
    """

    requests: int
    pairs: int
    hits: int
    notes_found: int
    queries_found: int
    pairs_kept: int
    queries_kept: int

    @property
    def hit_rate(self) -> float:
        """The share of hits; NaN for no pairs."""
        return self.hits / self.pairs if self.pairs else math.nan

    def found(self, order: str) -> float:
        """Return the share of computed pairs that found their note (or query); 0 if no pair was computed."""
        computed = self.pairs - self.hits
        found = self.notes_found if order == "note-first" else self.queries_found
        return found / computed if computed else 0.0


class _PairCache:
    """Queries with their scored notes; evicts as `service.caches.memory_cache` does."""

    def __init__(self, cache: PairCache) -> None:
        self._cache = cache
        self._now = 0
        # A query's end, and its notes.
        self.queries: TLRUCache[Hashable, tuple[float, dict[Hashable, None]]] = TLRUCache(
            maxsize=cache.pairs,
            ttu=lambda _query, kept, _now: kept[0],
            timer=lambda: self._now,
            getsizeof=lambda kept: len(kept[1]),
        )

    def ask(self, query: Hashable, notes: Sequence[Hashable], now: int) -> list[Hashable]:
        """Return the notes that are not cached, and cache them."""
        self._now = now
        ends, known = self.queries.pop(query, (now + self._cache.ttl_requests, {}))
        new = [note for note in notes if note not in known]
        known.update(dict.fromkeys(new))
        while len(known) > self._cache.pairs:
            del known[next(iter(known))]
        self.queries[query] = ends, known
        return new


def _ask(cache: LRUCache[Hashable, None], thing: Hashable) -> bool:
    """Return whether a note or query was in the prefix cache, and cache it."""
    was_cached = thing in cache
    cache[thing] = None
    return was_cached


def replay_requests(
    requests: Iterable[Request], cache: PairCache, prefixes: float = math.inf, count_from: int = 0
) -> Seen:
    """Simulate the requests in order.

    Args:
        prefixes: capacity of the prefix cache in notes (or queries).
        count_from: number of first requests that fill the caches and are not counted.
    """
    # The prefix cache's blocks that are never shared are left out.
    notes_held, queries_held = LRUCache[Hashable, None](prefixes), LRUCache[Hashable, None](prefixes)
    kept = _PairCache(cache)
    counted, pairs, hits, notes_found, queries_found = 0, 0, 0, 0, 0
    for now, (query, notes) in enumerate(requests):
        new = kept.ask(query, notes, now)
        notes_there = sum(_ask(notes_held, note) for note in new)
        queries_there = sum(_ask(queries_held, query) for _ in new)
        if now >= count_from:
            counted += 1
            pairs += len(notes)
            hits += len(notes) - len(new)
            notes_found += notes_there
            queries_found += queries_there
    pairs_kept, queries_kept = round(kept.queries.currsize), len(kept.queries)
    return Seen(counted, pairs, hits, notes_found, queries_found, pairs_kept, queries_kept)


class Log:
    """A log of requests in order."""

    def __init__(self, requests: Sequence[Request]) -> None:
        """Take the requests. Raises ValueError if there are none."""
        if not requests:
            raise ValueError("the log has no requests")
        self._requests = requests
        self._pairs = sum(len(notes) for _, notes in requests)
        self._notes = len({note for _, notes in requests for note in notes})
        self._seen: dict[tuple[float, float, float], Seen] = {}

    @classmethod
    def of(cls, asked: Iterable[Asked]) -> "Log":
        """Make a log of hashes instead of texts, which need less memory."""
        return cls([(hash(query), tuple(map(hash, notes))) for query, notes in logged_requests(asked)])

    @property
    def notes_per_request(self) -> float:
        """The mean number of notes."""
        return self._pairs / len(self._requests)

    def facts(self) -> dict[str, float]:
        """Compute statistics with caches that never evict; rates are below 1."""
        whole, late = replay_requests(self._requests, PairCache()), self._late(PairCache(), math.inf)
        return {
            "requests": whole.requests,
            "pairs": whole.pairs,
            "queries": whole.queries_kept,
            "notes": self._notes,
            "distinct pairs": whole.pairs_kept,
            "hit rate": whole.hit_rate,
            "hit rate of second half": late.hit_rate,
        }

    def caching(self, site: Site, notes_per_s: float, ttl_s: float, most_pairs: float) -> Caching:
        """Measure the caches on the second half of the log at that rate; the first half fills them."""
        ttl = ttl_s * notes_per_s / self.notes_per_request
        room = site.prefix_cache_tokens
        # A computed pair occupies its shareable blocks and the rest of its whole blocks.
        prefixes = room // max(1.0, site.prompt.shared - site.prompt.shared_head + site.prompt.tail)
        seen = self._late(PairCache(most_pairs, ttl if ttl < len(self._requests) else math.inf), prefixes)
        found = seen.found(site.prompt.order)
        return Caching(seen.hit_rate, found, seen.pairs_kept, seen.queries_kept, self._notes)

    def _late(self, cache: PairCache, prefixes: float) -> Seen:
        # A capacity above the number of pairs is unlimited, so devices with much memory share one simulation.
        prefixes = prefixes if prefixes < self._pairs else math.inf
        key = cache.pairs, cache.ttl_requests, prefixes
        if key not in self._seen:
            half = len(self._requests) // 2
            self._seen[key] = replay_requests(self._requests, cache, prefixes, count_from=half)
        return self._seen[key]


def logged_requests(asked: Iterable[Asked]) -> Iterator[Request]:
    """Yield the canonical requests of a log. A note is its title and body, which may be hashes."""
    for each in asked:
        notes = ((canonicalize(note["title"]), canonicalize(note["body"])) for note in each.notes)
        yield canonicalize(each.query), list(dict.fromkeys(notes))
