"""Computes how much of a prompt the engine reuses from its prefix cache.

vLLM caches keys and values in blocks of tokens, and evicts the least recently used. If prompts have the note before the query, a
note is computed once for all queries. If they have the query first, the pairs of a request share their query.
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
        head: criteria and everything else that all prompts start with.
        note, query: the last of them includes the cue.
        note_sd, query_sd: standard deviations, which matter because only whole blocks are shared.
        block: tokens per block of the engine's cache.
    """

    head: float
    note: float
    query: float
    order: Order = "note-first"
    block: int = 16
    note_sd: float = 0.0
    query_sd: float = 0.0

    def of_vectors(self, per_note: float, cue: float = 1) -> "Prompt":
        """Return the prompt in which that many vectors, and the cue, follow criteria and query, which are padded to whole blocks."""
        start = math.ceil((self.head + self.query) / self.block) * self.block
        return Prompt(self.head, per_note + cue, start - self.head, "query-first", self.block)

    @property
    def tokens(self) -> float:
        """The length of a prompt."""
        return self.head + self.note + self.query

    @property
    def shared_head(self) -> float:
        """The tokens in blocks that all prompts share."""
        return self.head // self.block * self.block

    @property
    def shared(self) -> float:
        """The tokens in blocks that prompts with the same note (or query) share, including the head's."""
        if self.order == "note-first":
            return self._whole_blocks(self.head + self.note, self.note_sd)
        return self._whole_blocks(self.head + self.query, self.query_sd)

    @property
    def tail(self) -> float:
        """The tokens in further whole blocks, which only the same pair could reuse but which fill the cache."""
        whole = self._whole_blocks(self.tokens, math.hypot(self.note_sd, self.query_sd))
        return max(0.0, whole - self.shared)

    def _whole_blocks(self, mean: float, sd: float) -> float:
        """Compute the mean tokens in whole blocks for normally distributed lengths, at least the head's."""
        most = int((mean + 6 * sd) // self.block)
        blocks = (_chance_over(block * self.block, mean, sd) for block in range(1, most + 1))
        return max(self.shared_head, self.block * sum(blocks))

    def reused(self, found: float) -> float:
        """Compute the reused tokens per pair if a share `found` of the pairs finds its note (or query)."""
        return self.shared_head + found * (self.shared - self.shared_head)


def _chance_over(tokens: float, mean: float, sd: float) -> float:
    """Compute the probability of at least `tokens` tokens, with a continuity correction of half a token."""
    if sd == 0:
        return float(mean >= tokens)
    return 0.5 * math.erfc((tokens - 0.5 - mean) / (sd * math.sqrt(2)))


def found_steadily(pairs: Pairs, known: Array, prompt: Prompt, room_tokens: float) -> float:
    """Compute the share of computed pairs whose note (or query) is in the prefix cache, in the steady state.

    known: the probability that each pair is in the pair cache. room_tokens: the capacity of the prefix cache.
    """
    missing = 1 - known
    if prompt.order == "query-first":
        return _query_found(pairs, missing, prompt, room_tokens, math.inf)
    rates = _by_note(pairs, pairs.query * pairs.queries * pairs.note * missing)
    return _note_found(pairs, rates, lambda window: rates * window, prompt, room_tokens, math.inf)


def found_after(pairs: Pairs, requests: float, prompt: Prompt, room_tokens: float) -> float:
    """Compute the same share `requests` after both caches were empty, with a pair cache that never evicts."""
    missing = 1 - present_after(pairs, requests)
    if prompt.order == "query-first":
        return _query_found(pairs, missing, prompt, room_tokens, requests)

    def visits(window: float) -> Array:
        # Each pair is computed once: in the window in which it is new.
        new = present_after(pairs, requests) - present_after(pairs, max(0.0, requests - window))
        return _by_note(pairs, pairs.queries * new)

    rates = _by_note(pairs, pairs.query * pairs.queries * pairs.note * missing)
    return _note_found(pairs, rates, visits, prompt, room_tokens, requests)


def _by_note(pairs: Pairs, computed: Array) -> Array:
    """Sum computed pairs per note of each class; a query's own notes are spread by the notes' popularity."""
    summed = computed.sum(axis=0)
    own = summed[0] * pairs.notes[0, 0]
    return summed[1:] + own * pairs.law.share


def _note_found(
    pairs: Pairs,
    rates: Array,
    visits: Callable[[float], Array],
    prompt: Prompt,
    room_tokens: float,
    longest: float,
) -> float:
    def held(window: float) -> float:
        seen = visits(window)
        own = (pairs.law.count * -np.expm1(-seen)).sum() * (prompt.shared - prompt.shared_head)
        return float(own + (pairs.law.count * seen).sum() * prompt.tail)

    window = min(longest, solve(held, room_tokens))
    weights = pairs.law.count * rates
    there = np.ones_like(rates) if math.isinf(window) else -np.expm1(-visits(window))
    return _mean(there, weights)


def _query_found(pairs: Pairs, missing: Array, prompt: Prompt, room_tokens: float, longest: float) -> float:
    computed = (pairs.note * pairs.notes * missing).sum(axis=1)  # computed pairs per request for the query
    asking = np.minimum(1.0, computed)  # a request without computed pairs does not touch the prefix cache
    query, queries = pairs.query[:, 0], pairs.queries[:, 0]

    def held(window: float) -> float:
        own = (queries * -np.expm1(-query * asking * window)).sum() * (prompt.shared - prompt.shared_head)
        return float(own + (queries * query * computed).sum() * window * prompt.tail)

    window = min(longest, solve(held, room_tokens))
    there = np.ones_like(query) if math.isinf(window) else -np.expm1(-query * asking * window)
    # The first pair of a request may have to compute the query; the others always find it.
    first = np.divide(asking, computed, out=np.ones_like(computed), where=computed > 0)
    return _mean(1 - (1 - there) * first, queries * query * computed)


def _mean(values: Array, weights: Array) -> float:
    """Compute the weighted mean; 0 if nothing is computed."""
    total = weights.sum()
    return float((values * weights).sum() / total) if total > 0 else 0.0
