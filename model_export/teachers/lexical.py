"""A teacher that compares words: BM25, the query's words and phrase in the note, and lengths."""

from collections.abc import Mapping, Sequence

import numpy as np

from model_export.data.bm25 import bm25_scores, tokenize
from model_export.data.pairs import Pair
from model_export.progress import OnProgress
from model_export.teachers.base import Features


class LexicalTeacher:
    """Computes seven features of words. The idf of BM25 is over the notes of the pairs it is given, by source."""

    name = "lexical"
    settings: Mapping[str, object] = {}
    chunk: int | None = None
    parallel = False

    def load(self, on_progress: OnProgress) -> Features:  # noqa: ARG002 - there is nothing to load
        """Return the function that computes (pairs, 7) features."""
        return _features


def _features(pairs: Sequence[Pair]) -> np.ndarray:
    counted = np.array([_count(pair) for pair in pairs])
    return np.column_stack([np.log1p(bm25_scores(pairs)), counted])


def _count(pair: Pair) -> list[float]:
    query, title, body = (tokenize(text) for text in (pair.query, pair.note.title, pair.note.body))
    wanted = set(query)
    return [
        _share(wanted, title),
        _share(wanted, body),
        _share(wanted, title + body),
        float(_contains(title, query) or _contains(body, query)),
        np.log1p(len(query)),
        np.log1p(len(title) + len(body)),
    ]


def _share(wanted: set[str], words: Sequence[str]) -> float:
    return len(wanted.intersection(words)) / len(wanted) if wanted else 0.0


def _contains(words: Sequence[str], phrase: Sequence[str]) -> bool:
    """Return whether the words hold the phrase in one piece."""
    return bool(phrase) and f" {' '.join(phrase)} " in f" {' '.join(words)} "
