"""The long tail of a dev set: the pairs whose query has terms that are rare in training.

A query's rarity is the mean, over its distinct terms, of the share of training documents that contain the term. The
documents are the distinct queries and the distinct notes of the training file.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from model_export.data.bm25 import tokenize
from model_export.data.pairs import DataError, Pair, listed, read_lines


def long_tail_ids(train: Sequence[Pair], dev: Sequence[Pair]) -> frozenset[str]:
    """Return the ids of the dev pairs whose query is in the rarest third of dev's queries; ties are broken by text."""
    queries = {pair.query for pair in train}
    notes = {f"{pair.note.title}\n{pair.note.body}" for pair in train}
    counts = Counter(term for text in (*queries, *notes) for term in frozenset(tokenize(text)))
    ranked = sorted({pair.query for pair in dev}, key=lambda query: (_mean_count(query, counts), query))
    rarest = frozenset(ranked[: len(ranked) // 3])
    return frozenset(pair.id for pair in dev if pair.query in rarest)


def _mean_count(query: str, counts: Mapping[str, int]) -> float:
    # Counts instead of shares give the same order, and sums of integers keep ties exact.
    terms = frozenset(tokenize(query))
    return sum(counts.get(term, 0) for term in terms) / len(terms) if terms else 0.0


def read_long_tail(path: Path, dev: Collection[Pair]) -> frozenset[str]:
    """Read ids of dev pairs from a file with one per line.

    Raises DataError when the file can't be read, is empty, or has ids that no dev pair has.
    """
    ids = frozenset(line.strip() for line in read_lines(path)) - {""}
    if not ids:
        raise DataError(f"{path}: holds no id")
    if unknown := sorted(ids - {pair.id for pair in dev}):
        raise DataError(f"{path}: no dev pair has the id {listed(unknown)}")
    return ids
