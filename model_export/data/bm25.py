"""BM25 over a collection of texts, for baselines and for mining."""

import unicodedata
from collections.abc import Sequence

import bm25s
import numpy as np

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
