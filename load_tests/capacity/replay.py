"""The caches by simulation: requests one after the other, through a cache that behaves as the service's does.

Checks the formulas of `pairs` and `prefix`, and stands in for them where there is a log of real traffic.
"""

import math
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from load_tests.bench.workloads import Asked
from load_tests.capacity.model import Caching, Site
from load_tests.capacity.pairs import PairCache
from service.contract.text import canonicalize

Request = tuple[Hashable, Sequence[Hashable]]


@dataclass(frozen=True, slots=True)
class Seen:
    """What became of requests.

    Attributes:
        hits: pairs that the cache knew.
        notes_found: pairs that it did not know whose note the engine still had, and
        queries_found: whose query it still had or had from a pair of the same request.
        pairs_kept, queries_kept: in the cache at the end.
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
        """NaN of no pairs."""
        return self.hits / self.pairs if self.pairs else math.nan

    def found(self, order: str) -> float:
        """Share of the pairs to compute that find their note (or query); 0 where none is to compute."""
        computed = self.pairs - self.hits
        there = self.notes_found if order == "note-first" else self.queries_found
        return there / computed if computed else 0.0


class _Kept:
    """Queries with the notes that were scored for them; the least recently used query goes, and each one at its time."""

    def __init__(self, cache: PairCache) -> None:
        self._cache = cache
        self._queries: OrderedDict[Hashable, tuple[float, dict[Hashable, None]]] = OrderedDict()
        self._ends: deque[tuple[float, Hashable]] = (
            deque()
        )  # all live equally long: in the order of their ends
        self.pairs = 0

    @property
    def queries(self) -> int:
        return len(self._queries)

    def ask(self, query: Hashable, notes: Sequence[Hashable], now: int) -> list[Hashable]:
        """The notes that it doesn't know, which it then knows."""
        self._drop_ended(now)
        if query not in self._queries:
            self._queries[query] = now + self._cache.ttl_requests, {}
            self._ends.append((now + self._cache.ttl_requests, query))
        ends, known = self._queries.pop(query)
        self.pairs -= len(known)
        new = [note for note in notes if note not in known]
        known.update(dict.fromkeys(new))
        while len(known) > self._cache.pairs:
            del known[next(iter(known))]
        self._queries[query] = ends, known
        self.pairs += len(known)
        while self.pairs > self._cache.pairs:
            self.pairs -= len(self._queries.popitem(last=False)[1][1])
        return new

    def _drop_ended(self, now: int) -> None:
        while self._ends and self._ends[0][0] <= now:
            ends, query = self._ends.popleft()
            # It may have made room before, and have come again.
            if query in self._queries and self._queries[query][0] == ends:
                self.pairs -= len(self._queries.pop(query)[1])


class _Recent:
    """The last so many distinct things, as the engine's cache has them; blocks that nobody shares are left out."""

    def __init__(self, most: float) -> None:
        self._most = most
        self._things: OrderedDict[Hashable, None] = OrderedDict()

    def ask(self, thing: Hashable) -> bool:
        """Whether it was there; it is now."""
        there = thing in self._things
        self._things[thing] = None
        self._things.move_to_end(thing)
        if len(self._things) > self._most:
            self._things.popitem(last=False)
        return there


def replay_requests(
    requests: Iterable[Request], cache: PairCache, prefixes: float = math.inf, count_from: int = 0
) -> Seen:
    """Ask for them in turn.

    Args:
        prefixes: most notes (or queries) whose start of a prompt the engine keeps.
        count_from: requests that only fill the caches.
    """
    kept, notes_held, queries_held = _Kept(cache), _Recent(prefixes), _Recent(prefixes)
    counted, pairs, hits, notes_found, queries_found = 0, 0, 0, 0, 0
    for now, (query, notes) in enumerate(requests):
        new = kept.ask(query, notes, now)
        notes_there = sum(notes_held.ask(note) for note in new)
        queries_there = sum(queries_held.ask(query) for _ in new)
        if now >= count_from:
            counted += 1
            pairs += len(notes)
            hits += len(notes) - len(new)
            notes_found += notes_there
            queries_found += queries_there
    return Seen(counted, pairs, hits, notes_found, queries_found, kept.pairs, kept.queries)


@dataclass(frozen=True, slots=True)
class Facts:
    """Of a log, through caches that forget nothing; `late_hit_rate` is that of its second half."""

    requests: int
    pairs: int
    distinct_queries: int
    distinct_notes: int
    distinct_pairs: int
    hit_rate: float
    late_hit_rate: float


class Log:
    """Requests that were made once, in their order."""

    def __init__(self, requests: Sequence[Request]) -> None:
        """Raises ValueError where there are none."""
        if not requests:
            raise ValueError("the log has no request")
        self._requests = requests
        self._pairs = sum(len(notes) for _, notes in requests)
        self._seen: dict[tuple[float, float, float], Seen] = {}

    @classmethod
    def of(cls, asked: Iterable[Asked]) -> "Log":
        """As hashes of what was asked, so that a long log needs no more memory than it must."""
        return cls([(hash(query), tuple(map(hash, notes))) for query, notes in logged_requests(asked)])

    @property
    def notes_per_request(self) -> float:
        """Mean."""
        return self._pairs / len(self._requests)

    def facts(self) -> Facts:
        """What it holds."""
        whole, late = replay_requests(self._requests, PairCache()), self._late(PairCache(), math.inf)
        notes = {note for _, of_request in self._requests for note in of_request}
        return Facts(
            whole.requests,
            whole.pairs,
            whole.queries_kept,
            len(notes),
            whole.pairs_kept,
            whole.hit_rate,
            late.hit_rate,
        )

    def caching(self, site: Site, notes_per_s: float, ttl_s: float, most_pairs: float) -> Caching:
        """As measured in its second half, at that rate: the first half fills the caches."""
        ttl = ttl_s * notes_per_s / self.notes_per_request
        room = site.engine.prefix_cache(site.device, site.model).tokens
        # What a computed pair takes of the engine's cache: what it may share, and what nobody else can use.
        prefixes = room // max(1.0, site.prompt.shared - site.prompt.shared_head + site.prompt.tail)
        seen = self._late(PairCache(most_pairs, ttl if ttl < len(self._requests) else math.inf), prefixes)
        return Caching(seen.hit_rate, seen.found(site.prompt.order), seen.pairs_kept, seen.queries_kept)

    def _late(self, cache: PairCache, prefixes: float) -> Seen:
        # More than there are pairs is as good as no limit: devices with much memory differ in nothing.
        prefixes = prefixes if prefixes < self._pairs else math.inf
        key = cache.pairs, cache.ttl_requests, prefixes
        if key not in self._seen:
            half = len(self._requests) // 2
            self._seen[key] = replay_requests(self._requests, cache, prefixes, count_from=half)
        return self._seen[key]


def logged_requests(asked: Iterable[Asked]) -> Iterator[Request]:
    """Of a log; a note is its title and body, as in the service. A log may have hashes in the place of texts."""
    for each in asked:
        notes = ((canonicalize(note["title"]), canonicalize(note["body"])) for note in each.notes)
        yield canonicalize(each.query), list(dict.fromkeys(notes))
