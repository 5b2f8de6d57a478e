"""Grades, queries and criteria of judged pairs as arrays, which metrics and fits take."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from model_export.data.pairs import Pair


@dataclass(frozen=True)
class Judged:
    """Arrays of (pairs,) gold grades, query numbers from 0, and names of criteria."""

    gold: np.ndarray
    query_of: np.ndarray
    criteria: np.ndarray

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> Self:
        """Take the arrays from the pairs. Pairs with the same query and source share a query number."""
        numbers: dict[tuple[str, str], int] = {}
        queries = [numbers.setdefault((pair.source, pair.query), len(numbers)) for pair in pairs]
        gold, criteria = [pair.label for pair in pairs], [pair.criteria for pair in pairs]
        return cls(np.array(gold), np.array(queries), np.array(criteria))

    def __getitem__(self, rows: np.ndarray) -> Self:
        """Select these rows."""
        return type(self)(self.gold[rows], self.query_of[rows], self.criteria[rows])

    def rows_by_criteria(self) -> dict[str, np.ndarray]:
        """Find the (rows,) of each criteria, in the order in which they first occur."""
        names = dict.fromkeys(self.criteria.tolist())
        return {name: np.flatnonzero(self.criteria == name) for name in names}
