"""Models traffic for the capacity model: queries and notes by Zipf's law, in classes of similar popularity.

Ranks up to `_EXACT` are separate classes, others are in bands whose popularity differs by a few percent, so a law over a billion
notes is a few hundred classes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

# mypy does not follow numpy (pyproject.toml), so this is Any to it.
Array: TypeAlias = np.ndarray[Any, Any]

_EXACT = 100
_BANDS = 250
# Bisection steps on a logarithmic scale, enough for a float's precision.
_HALVINGS = 60


@dataclass(frozen=True, slots=True)
class Traffic:
    """The parameters of a traffic.

    Attributes:
        queries, notes: numbers of distinct queries and notes.
        query_exponent, note_exponent: the k-th most popular has weight k^-exponent.
        notes_per_request: distinct notes in a request.
        own_share: share of a request's notes that are the same for each request of its query, as from a ranking backend. The
            others are drawn per request, independently of the query. 0 is the traffic of `load_tests.bench`.
    """

    queries: int = 10_000_000
    notes: int = 100_000_000
    query_exponent: float = 1.0
    note_exponent: float = 1.0
    notes_per_request: float = 20.0
    own_share: float = 0.0


@dataclass(frozen=True, slots=True)
class Popularity:
    """Classes of queries or notes: the `share` of draws of a single member, and the number of members."""

    share: Array
    count: Array


def zipf_law(exponent: float, count: int) -> Popularity:
    """Make the law in which the k-th of `count` members has weight k^-exponent; shares sum to 1 over all members."""
    ranks = np.arange(1.0, min(count, _EXACT) + 1)
    edges = np.unique(np.geomspace(_EXACT + 1, max(count, _EXACT) + 1, _BANDS).round())
    members = np.concatenate([np.ones_like(ranks), np.diff(edges)])
    # The sum over ranks a to b-1 is about the integral from a - 1/2 to b - 1/2 (error 1e-5 at rank 100).
    bands = np.diff(_integral(edges - 0.5, exponent))
    weights = np.concatenate([ranks**-exponent, bands])
    return Popularity(weights / weights.sum() / members, members)


def _integral(x: Array, exponent: float) -> Array:
    if exponent == 1:
        return np.log(x)
    return x ** (1 - exponent) / (1 - exponent)


def inclusion(law: Popularity, drawn: float) -> Array:
    """Compute the probability that a member of each class is among `drawn` distinct draws."""
    if drawn == 0 or drawn >= law.count.sum():
        return np.full_like(law.share, float(drawn > 0))

    def distinct(draws: float) -> float:
        return float((law.count * -np.expm1(-law.share * draws)).sum())

    return -np.expm1(-law.share * solve(distinct, drawn))


@dataclass(frozen=True, slots=True)
class Pairs:
    """Classes of pairs: rows are query classes, columns note classes. The first column is a query's own notes.

    Attributes:
        query: probability that a request is for one query of the class, (queries, 1).
        queries: number of queries in the class, (queries, 1).
        note: probability that a request for a query contains one note of the class, (1, notes + 1).
        notes: number of notes in the class, (1, notes + 1).
        law: popularity of the notes, without the first column.
        per_request: pairs per request.
    """

    query: Array
    queries: Array
    note: Array
    notes: Array
    law: Popularity
    per_request: float

    def mean(self, value: Array) -> float:
        """Compute the mean over requested pairs, weighted by how often each is requested."""
        asked = self.query * self.queries * self.note * self.notes
        return float((asked * value).sum() / self.per_request)

    def total(self, value: Array) -> float:
        """Compute the sum over all pairs."""
        return float((self.queries * self.notes * value).sum())


def pairs_of(traffic: Traffic) -> Pairs:
    """Make the classes of pairs. Raises ValueError if a request has more notes than there are."""
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
    """Find where a rising function reaches the target, between 1e-9 and `most`; infinity if it doesn't."""
    if rising(most) < target:
        return math.inf
    low, high = math.log(1e-9), math.log(most)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(math.exp(middle)) < target else (low, middle)
    return math.exp(high)
