"""Ranks the notes of a collection for queries, by BM25 and by the cosine of an encoder."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import repeat

import numpy as np

from model_export.data.bm25 import Bm25

# Computes a unit vector of each text, (texts, width).
Encode = Callable[[Sequence[str]], np.ndarray]
_RANK_OFFSET = 60
_CHUNK = 64  # queries whose cosines are in memory at once: 26 MB for 100,000 notes


def rank_notes(
    notes: Sequence[str], queries: Mapping[str, Collection[int]], most: int, encode: Encode | None
) -> Iterator[list[int]]:
    """Yield for each query the numbers of at most `most` notes, nearest first, without those that the mapping gives for it.

    The rankings by BM25 and cosine are fused by reciprocal rank (Cormack et al., SIGIR 2009). Without an encoder, BM25 ranks
    alone: a note that shares no word with the query is in no ranking.
    """
    bm25 = Bm25(notes)
    cosines = _cosines(notes, list(queries), encode) if encode else repeat(None)
    for (query, excluded), by_cosine in zip(queries.items(), cosines, strict=False):
        by_bm25 = bm25.scores(query)
        rankings = [_best(np.where(by_bm25 > 0, by_bm25, -np.inf), excluded, most)]
        if by_cosine is not None:
            rankings.append(_best(by_cosine, excluded, most))
        yield _fuse(rankings)[:most]


def _cosines(notes: Sequence[str], queries: Sequence[str], encode: Encode) -> Iterator[np.ndarray]:
    """Yield the (notes,) cosines of each query."""
    of_notes, of_queries = np.split(encode([*notes, *queries]), [len(notes)])
    for start in range(0, len(queries), _CHUNK):
        yield from of_queries[start : start + _CHUNK] @ of_notes.T


def _best(scores: np.ndarray, excluded: Collection[int], most: int) -> list[int]:
    """Return the positions of the highest finite scores, highest first, ties by position; it overwrites excluded scores."""
    scores[list(excluded)] = -np.inf
    best = np.arange(len(scores)) if most >= len(scores) else np.sort(np.argpartition(-scores, most)[:most])
    best = best[np.argsort(-scores[best], kind="stable")]
    found: list[int] = best[np.isfinite(scores[best])].tolist()
    return found


def _fuse(rankings: Sequence[Sequence[int]]) -> list[int]:
    fused: defaultdict[int, float] = defaultdict(float)
    for ranking in rankings:
        for rank, number in enumerate(ranking, 1):
            fused[number] += 1 / (_RANK_OFFSET + rank)
    return sorted(fused, key=lambda number: (-fused[number], number))
