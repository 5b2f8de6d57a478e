"""How much of a prompt the engine need not compute, since it still has the keys and values of the prompt's start.

vLLM keeps them in blocks of whole tokens and drops the least recently used ones. With criteria, note, query in this order a note
that was scored for any query is read once; with criteria, query, note the pairs of a request share their query.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from load_tests.capacity.pairs import present_after
from load_tests.capacity.traffic import Array, Pairs, solve

Order = Literal["note-first", "query-first"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """Mean lengths in tokens.

    Attributes:
        head: criteria and whatever else all prompts begin with.
        note, query: the one that comes last with the cue that ends the prompt.
        note_sd, query_sd: standard deviations; only whole blocks are shared, so lengths matter by more than their mean.
        block: tokens in a block of the engine's cache.
    """

    head: float
    note: float
    query: float
    order: Order = "note-first"
    block: int = 16
    note_sd: float = 0.0
    query_sd: float = 0.0

    @property
    def tokens(self) -> float:
        """Of a whole prompt."""
        return self.head + self.note + self.query

    @property
    def shared_head(self) -> float:
        """Tokens of the blocks that all prompts share."""
        return self.head // self.block * self.block

    @property
    def shared(self) -> float:
        """Tokens of the blocks that prompts with the same note (or query) share, the head's among them."""
        if self.order == "note-first":
            return self._whole_blocks(self.head + self.note, self.note_sd)
        return self._whole_blocks(self.head + self.query, self.query_sd)

    @property
    def tail(self) -> float:
        """Tokens of the further whole blocks, which only the same pair could use again: they take room all the same."""
        whole = self._whole_blocks(self.tokens, math.hypot(self.note_sd, self.query_sd))
        return max(0.0, whole - self.shared)

    def _whole_blocks(self, mean: float, sd: float) -> float:
        """Tokens in whole blocks, of normally distributed lengths; never fewer than the head's."""
        most = int((mean + 6 * sd) // self.block)
        blocks = (_chance_over(block * self.block, mean, sd) for block in range(1, most + 1))
        return max(self.shared_head, self.block * sum(blocks))

    def reused(self, found: float) -> float:
        """Tokens of a pair that need not be computed, where that share of the pairs finds its note (or query)."""
        return self.shared_head + found * (self.shared - self.shared_head)


def _chance_over(tokens: float, mean: float, sd: float) -> float:
    """That a length is at least so many tokens; half a token of continuity correction, since lengths are whole."""
    if sd == 0:
        return float(mean >= tokens)
    return 0.5 * math.erfc((tokens - 0.5 - mean) / (sd * math.sqrt(2)))


@dataclass(frozen=True, slots=True)
class PrefixCache:
    """Room for keys and values, in tokens; of one replica, since replicas don't share it."""

    tokens: float = math.inf


def found_steadily(pairs: Pairs, known: Array, prompt: Prompt, cache: PrefixCache) -> float:
    """Share of the pairs that are computed whose note (or query) is there, where the pair cache knows `known` (a chance)."""
    missing = 1 - known
    if prompt.order == "query-first":
        return _query_found(pairs, missing, prompt, cache, math.inf)
    rates = _by_note(pairs, pairs.query * pairs.queries * pairs.note * missing)
    return _note_found(pairs, rates, lambda window: rates * window, prompt, cache, math.inf)


def found_after(pairs: Pairs, requests: float, prompt: Prompt, cache: PrefixCache) -> float:
    """The same at a moment: so many requests after both caches were empty, with a pair cache that forgets nothing."""
    missing = 1 - present_after(pairs, requests)
    if prompt.order == "query-first":
        return _query_found(pairs, missing, prompt, cache, requests)

    def visits(window: float) -> Array:
        # Pairs are computed once: those of a window are those that were new in it.
        new = present_after(pairs, requests) - present_after(pairs, max(0.0, requests - window))
        return _by_note(pairs, pairs.queries * new)

    rates = _by_note(pairs, pairs.query * pairs.queries * pairs.note * missing)
    return _note_found(pairs, rates, visits, prompt, cache, requests)


def _by_note(pairs: Pairs, computed: Array) -> Array:
    """Computed pairs of a single note of each class; those that queries always bring are spread by the notes' popularity."""
    summed = computed.sum(axis=0)
    own = summed[0] * pairs.notes[0, 0]
    return summed[1:] + own * pairs.law.share


def _note_found(
    pairs: Pairs,
    rates: Array,
    visits: Callable[[float], Array],
    prompt: Prompt,
    cache: PrefixCache,
    longest: float,
) -> float:
    def held(window: float) -> float:
        seen = visits(window)
        own = (pairs.law.count * -np.expm1(-seen)).sum() * (prompt.shared - prompt.shared_head)
        return float(own + (pairs.law.count * seen).sum() * prompt.tail)

    window = min(longest, solve(held, cache.tokens))
    weights = pairs.law.count * rates
    there = np.ones_like(rates) if math.isinf(window) else -np.expm1(-visits(window))
    return _mean(there, weights)


def _query_found(pairs: Pairs, missing: Array, prompt: Prompt, cache: PrefixCache, longest: float) -> float:
    computed = (pairs.note * pairs.notes * missing).sum(axis=1)  # pairs of a request for the query
    asking = np.minimum(1.0, computed)  # a request with none of them leaves no trace
    query, queries = pairs.query[:, 0], pairs.queries[:, 0]

    def held(window: float) -> float:
        own = (queries * -np.expm1(-query * asking * window)).sum() * (prompt.shared - prompt.shared_head)
        return float(own + (queries * query * computed).sum() * window * prompt.tail)

    window = min(longest, solve(held, cache.tokens))
    there = np.ones_like(query) if math.isinf(window) else -np.expm1(-query * asking * window)
    # The first pair of a request computes its query where it is not there; the others find it.
    first = np.divide(asking, computed, out=np.ones_like(computed), where=computed > 0)
    return _mean(1 - (1 - there) * first, queries * query * computed)


def _mean(values: Array, weights: Array) -> float:
    """0 where nothing is computed at all."""
    total = weights.sum()
    return float((values * weights).sum() / total) if total > 0 else 0.0
