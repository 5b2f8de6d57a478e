"""Mines pairs that nobody judged, for teachers to label: training queries, and titles as queries, with notes of their source.

For a query the notes are ranked by BM25 and an encoder. *Hard* pairs have the nearest notes, *medium* pairs have notes from
the following ranks, *random* pairs have notes from beyond. A title is paired with its own note too.
"""

import json
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import ceil
from pathlib import Path
from random import Random

import numpy as np

from model_export.data.mined_queries import MinedQuery, SourceQueries, queries_of
from model_export.data.neighbours import Encode, rank_notes
from model_export.data.pairs import GRADES, UNJUDGED, Pair, Source, read_pairs, write_pairs
from model_export.data.sampling import group, sample
from model_export.progress import OnProgress
from model_export.recipe import Recipe
from model_export.recipe_stages import UnlabelledConfig

_INDEX = "mined.json"
_RANKS = 200  # hard and medium pairs have notes of these ranks, at most the nearer half of all notes
# Judged notes take a query's best ranks: what is left after a dozen hard pairs is no nearer than any other note.
_MOST_PAIRS = 24  # of a query
_PAIRS_PER_TITLE = 8


@dataclass(frozen=True, slots=True)
class MinedPair:
    """An unjudged pair, and how it was found: `title, own`, or `query` or `title` with `hard`, `medium` or `random`."""

    pair: Pair
    found: str


@dataclass(frozen=True, slots=True)
class Mined:
    """The pairs mined from one source, by query, and the number of queries that were refused, by reason."""

    source: Source
    pairs: tuple[MinedPair, ...]
    refused: Mapping[str, int]


def mine(
    train: Sequence[Pair],
    measured: Container[str],
    recipe: Recipe,
    encode: Encode | None,
    on_progress: OnProgress,
) -> list[Mined]:
    """Mine pairs from the training pairs of each source; the same ones for the same seed.

    A source gives fewer than its share if it has too few notes. `measured` holds the `query_hash` of each dev and test query,
    which no mined pair has.
    """
    config = recipe.unlabelled
    by_source = group(train, lambda pair: pair.source)
    weights = {name: len(pairs) ** config.source_exponent for name, pairs in by_source.items()}
    limits = {source.name: source.limits for source in recipe.data.sources}
    found: list[Mined] = []
    for name, pairs in by_source.items():
        on_progress("Mine pairs", len(found), len(by_source))
        source = Source(name, pairs[0].criteria, GRADES)
        # Templates may put a blank before the query.
        most_bytes = (limits.get(name) or recipe.model.limits).max_query_tokens - 1
        queries = queries_of(pairs, measured, most_bytes)
        wanted = round(config.pairs * weights[name] / sum(weights.values()))
        mined = _Miner(source, queries, config, Random(f"{recipe.seed} {name}")).mine(wanted, encode)
        found.append(Mined(source, tuple(mined), queries.refused))
    return found


class _Miner:
    """Mines the pairs of one source."""

    def __init__(
        self, source: Source, queries: SourceQueries, config: UnlabelledConfig, random: Random
    ) -> None:
        self._source = source
        self._queries = queries
        self._config = config
        self._random = random
        self._texts = list(queries.notes)
        self._ranks = min(_RANKS, len(self._texts) // 2)

    def mine(self, wanted: int, encode: Encode | None) -> Iterator[MinedPair]:
        counts = self._choose_queries(wanted)
        known = {query.text: query.known for query in counts}
        rankings = rank_notes(self._texts, known, self._ranks, encode)
        for (query, count), ranked in zip(counts.items(), rankings, strict=True):
            for tier, number in self._draw(query, count, ranked):
                yield self._make(query, self._texts[number], tier)

    def _choose_queries(self, wanted: int) -> dict[MinedQuery, int]:
        """Choose queries and the number of pairs of each. Titles make up for pairs that the training queries can't give."""
        titles = self._queries.titles if self._config.titles_share else ()
        of_judged = round(wanted * (1 - self._config.titles_share)) if titles else wanted
        counts = self._spread(self._queries.judged, of_judged)
        left = wanted - sum(counts.values())
        return counts | self._spread(sample(titles, ceil(left / _PAIRS_PER_TITLE), self._random), left)

    def _spread(self, queries: Sequence[MinedQuery], wanted: int) -> dict[MinedQuery, int]:
        """Give each query the same number of pairs, or one more, in random order."""
        most = min(_MOST_PAIRS, self._ranks)
        each, rest = divmod(wanted, max(1, len(queries)))
        shuffled = self._random.sample(queries, len(queries))
        counts = {query: min(each + (place < rest), most) for place, query in enumerate(shuffled)}
        return {query: count for query, count in counts.items() if count}

    def _draw(self, query: MinedQuery, count: int, ranked: list[int]) -> Iterator[tuple[str, int]]:
        """Yield tiers and numbers of notes; fewer than `count` where a tier has too few notes."""
        # A note that is only its title would be paired with itself.
        if query.own is not None and self._texts[query.own] != query.text:
            yield "own", query.own
            count -= 1
        shares = (self._config.hard, self._config.medium, self._config.random)
        counts = Counter(self._random.choices(("hard", "medium", "random"), shares, k=count))
        beyond = np.ones(len(self._texts), dtype=bool)
        beyond[[*ranked, *query.known]] = False
        drawn = {
            "hard": ranked[: counts["hard"]],
            "medium": sample(ranked[counts["hard"] :], counts["medium"], self._random),
            "random": sample(np.flatnonzero(beyond).tolist(), counts["random"], self._random),
        }
        yield from ((tier, number) for tier, numbers in drawn.items() for number in numbers)

    def _make(self, query: MinedQuery, text: str, tier: str) -> MinedPair:
        named = "\n".join((self._source.name, query.text, text))
        id_ = f"mined-{sha256(named.encode()).hexdigest()[:12]}"
        note, source = self._queries.notes[text], self._source
        pair = Pair(id_, query.text, note, UNJUDGED, source.name, source.criteria)
        return MinedPair(pair, f"{'query' if query.own is None else 'title'}, {tier}")


def write_mined(folder: Path, mined: Sequence[Mined]) -> None:
    """Write the pairs of each source to `<source>.jsonl`, which `notegrade-train label` reads too, and counts to `mined.json`."""
    index = []
    for found in mined:
        source = found.source
        write_pairs(folder / f"{source.name}.jsonl", (each.pair for each in found.pairs))
        counts = Counter(each.found for each in found.pairs)
        index.append(
            {"name": source.name, "criteria": source.criteria, "pairs": counts, "refused": found.refused}
        )
    (folder / _INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")


def read_mined(folder: Path) -> list[Pair]:
    """Read the pairs that `write_mined` wrote."""
    pairs: list[Pair] = []
    for each in json.loads((folder / _INDEX).read_text(encoding="utf-8")):
        if each["pairs"]:
            source = Source(each["name"], each["criteria"], GRADES)
            pairs += read_pairs(folder / f"{source.name}.jsonl", source, judged=False)
    return pairs
