"""BM25 over a collection of texts, for baselines and for mining."""

import unicodedata
from collections.abc import Sequence
from itertools import groupby

import bm25s
import numpy as np

from model_export.data.pairs import Pair, note_text
from service.contract.words import split_words


def tokenize(text: str) -> list[str]:
    """Split into lower-case NFKC words, and Chinese, Japanese and Korean into bigrams; no stemming, no stop words."""
    return list(split_words(unicodedata.normalize("NFKC", text).lower()))


class Bm25:
    """An index of a collection of texts."""

    def __init__(self, texts: Sequence[str]) -> None:
        tokens = [tokenize(text) for text in texts]
        self._size = len(texts)
        self._index = bm25s.BM25()
        self._has_words = any(tokens)
        if self._has_words:
            self._index.index(tokens, show_progress=False)

    def scores(self, query: str) -> np.ndarray:
        """Score all texts, (texts,): 0 for those that share no word with the query."""
        words = tokenize(query)
        # bm25s fails on a query or a collection without words.
        if not words or not self._has_words:
            return np.zeros(self._size)
        scores: np.ndarray = self._index.get_scores(words)
        return scores


def bm25_scores(pairs: Sequence[Pair]) -> np.ndarray:
    """Compute (pairs,) float64 scores in the pairs' order, with each source as a separate collection."""
    sources = np.array([pair.source for pair in pairs])
    scores = np.zeros(len(pairs))
    for source in np.unique(sources):
        rows = np.flatnonzero(sources == source)
        scores[rows] = _score_collection([pairs[row] for row in rows])
    return scores


def _score_collection(pairs: Sequence[Pair]) -> np.ndarray:
    number_of = {note: number for number, note in enumerate(dict.fromkeys(pair.note for pair in pairs))}
    index = Bm25([note_text(note) for note in number_of])
    scores = np.zeros(len(pairs))
    by_query = sorted(range(len(pairs)), key=lambda row: pairs[row].query)
    for query, group in groupby(by_query, key=lambda row: pairs[row].query):
        # One pass over the notes scores all pairs of a query.
        rows = list(group)
        scores[rows] = index.scores(query)[[number_of[pairs[row].note] for row in rows]]
    return scores
