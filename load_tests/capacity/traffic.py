"""Who asks for what, as the capacity model sees it: queries and notes by Zipf's laws, in classes of equal popularity.

A law over a thousand million notes is a few hundred classes here: ranks up to `_EXACT` one by one, the others in bands of
ranks whose popularity differs by some percent.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

# mypy reads no numpy (pyproject.toml): to it, this is Any.
Array: TypeAlias = np.ndarray[Any, Any]

_EXACT = 100
_BANDS = 250
# Halvings of an interval on a logarithmic scale: more than a float can tell apart.
_HALVINGS = 60


@dataclass(frozen=True, slots=True)
class Traffic:
    """What comes in.

    Attributes:
        queries, notes: how many distinct ones there are.
        query_exponent, note_exponent: the k-th most popular is asked for with weight k^-exponent.
        notes_per_request: distinct notes in a request.
        own_share: share of a request's notes that its query brings every time, as a ranking backend's candidates do; the
            others are drawn for each request anew, independently of the query. 0 is `load_tests.bench`'s traffic.
    """

    queries: int
    notes: int
    query_exponent: float = 1.0
    note_exponent: float = 1.0
    notes_per_request: float = 20
    own_share: float = 0.0


@dataclass(frozen=True, slots=True)
class Popularity:
    """Classes of things: `share` of the draws that each single member gets, and the members' `count`."""

    share: Array
    count: Array


def zipf_law(exponent: float, count: int) -> Popularity:
    """The k-th of `count` things has weight k^-exponent; shares add up to 1 over all members."""
    ranks = np.arange(1.0, min(count, _EXACT) + 1)
    edges = np.unique(np.geomspace(_EXACT + 1, max(count, _EXACT) + 1, _BANDS).round())
    members = np.concatenate([np.ones_like(ranks), np.diff(edges)])
    # A sum over ranks a to b-1 is the integral from a - 1/2 to b - 1/2 (midpoint rule: to 1e-5 at rank 100).
    bands = np.diff(_integral(edges - 0.5, exponent))
    weights = np.concatenate([ranks**-exponent, bands])
    return Popularity(weights / weights.sum() / members, members)


def _integral(x: Array, exponent: float) -> Array:
    if exponent == 1:
        return np.log(x)
    return x ** (1 - exponent) / (1 - exponent)


def inclusion(law: Popularity, drawn: float) -> Array:
    """For a single member of each class, the chance to be among `drawn` distinct ones: drawn until there are so many."""
    if drawn == 0 or drawn >= law.count.sum():
        return np.full_like(law.share, float(drawn > 0))

    def distinct(draws: float) -> float:
        return float((law.count * -np.expm1(-law.share * draws)).sum())

    return -np.expm1(-law.share * solve(distinct, drawn))


@dataclass(frozen=True, slots=True)
class Pairs:
    """All pairs, as classes: queries down, notes across. The first column is the notes that a query brings every time.

    Attributes:
        query: chance that a request is for one query of the class, (queries, 1).
        queries: how many there are, (queries, 1).
        note: chance that a request for a query holds one note of the class, (1, notes + 1).
        notes: how many there are, (1, notes + 1).
        law: the notes' popularity, without that column.
        per_request: pairs in a request.
    """

    query: Array
    queries: Array
    note: Array
    notes: Array
    law: Popularity
    per_request: float

    def mean(self, value: Array) -> float:
        """Over the pairs that are asked for, each as often as it is."""
        asked = self.query * self.queries * self.note * self.notes
        return float((asked * value).sum() / self.per_request)

    def total(self, value: Array) -> float:
        """Over all pairs that there are."""
        return float((self.queries * self.notes * value).sum())


def pairs_of(traffic: Traffic) -> Pairs:
    """Raises ValueError where a request has more notes than there are."""
    if traffic.notes_per_request > traffic.notes:
        raise ValueError(f"requests of {traffic.notes_per_request:g} notes need more than {traffic.notes}")
    queries = zipf_law(traffic.query_exponent, traffic.queries)
    notes = zipf_law(traffic.note_exponent, traffic.notes)
    own = traffic.own_share * traffic.notes_per_request
    drawn = inclusion(notes, traffic.notes_per_request - own)
    return Pairs(
        queries.share[:, None],
        queries.count[:, None],
        np.concatenate([[1.0], drawn])[None, :],
        np.concatenate([[own], notes.count])[None, :],
        notes,
        traffic.notes_per_request,
    )


def solve(rising: Callable[[float], float], target: float, most: float = 1e18) -> float:
    """Where a rising function reaches the target, between 1e-9 and `most`; infinite where it doesn't."""
    if rising(most) < target:
        return math.inf
    low, high = math.log(1e-9), math.log(most)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(math.exp(middle)) < target else (low, middle)
    return math.exp(high)
