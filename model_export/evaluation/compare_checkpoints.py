"""Two checkpoints on the same pairs, before one takes the other's place: what would change, and what it costs.

Grades and scores are those that the service would answer, by plain transformers in float32. Pairs need no label; where all have
one, the systems are measured as well (model_export/evaluation/evaluate.py), by calibrated probabilities.
"""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from model_export.checkpoint.writer import OnProgress
from model_export.data.pairs import UNJUDGED, Pair, Source, read_pairs
from model_export.data.prompting import render_for
from model_export.evaluation.evaluate import Evaluation, Predictions, evaluate, format_table, number_queries
from model_export.models.quantize import load_as_served
from model_export.teacher.rollout import Sampler
from service.contract.checkpoint import Checkpoint, load_checkpoint
from service.contract.comparison import Comparison, Graded, describe_comparison
from service.contract.judgement import Judgement, judge
from service.contract.labels import LabelDistribution
from service.errors import NotegradeError

_BATCH_SIZE = 32
# Both are timed on a chunk, one after the other, before the next: the machine's moods then come over both.
_CHUNK = 8 * _BATCH_SIZE
_FARTHEST = 10


class ComparisonError(NotegradeError):
    """Checkpoints that can't be compared."""


@dataclass
class Side:
    """One checkpoint's answers, in the pairs' order, and what they took.

    Attributes:
        seconds: of each chunk. prompt_tokens: over all pairs.
    """

    name: str
    fingerprint: str
    judgements: list[Judgement] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    prompt_tokens: int = 0


@dataclass(frozen=True)
class Compared:
    """What `compare_checkpoints` found; the first is the one that serves, the second the one that might."""

    pairs: Sequence[Pair]
    first: Side
    second: Side
    comparison: Comparison
    evaluation: Evaluation | None

    @property
    def time_ratios(self) -> list[float]:
        """The second's time over the first's, chunk by chunk."""
        return [b / a for a, b in zip(self.first.seconds, self.second.seconds, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """All of it without a text: pairs go by their ids."""
        sides = {"first": self.first, "second": self.second}
        return {
            **{key: {"name": side.name, "fingerprint": side.fingerprint} for key, side in sides.items()},
            "comparison": self.comparison.to_json(),
            "cost": {
                "prompt_tokens_per_pair": {key: side.prompt_tokens / len(self.pairs) for key, side in sides.items()},
                "ms_per_pair": {key: 1000 * sum(side.seconds) / len(self.pairs) for key, side in sides.items()},
                "time_ratio": {"least": min(self.time_ratios), "median": statistics.median(self.time_ratios), "greatest": max(self.time_ratios)},
            },
            "evaluation": self.evaluation.to_json() if self.evaluation else None,
            "pairs": [
                {"id": pair.id, "grades": [a.grade, b.grade], "scores": [a.score, b.score]}
                for pair, a, b in zip(self.pairs, self.first.judgements, self.second.judgements, strict=True)
            ],
        }  # fmt: skip

    def describe(self) -> str:
        """For a person."""
        found = self.to_json()
        cost = found["cost"]
        tokens, ms, ratio = cost["prompt_tokens_per_pair"], cost["ms_per_pair"], cost["time_ratio"]
        farthest = sorted(found["pairs"], key=lambda each: -abs(each["scores"][1] - each["scores"][0]))
        lines = [
            f"first   {self.first.name} {self.first.fingerprint}",
            f"second  {self.second.name} {self.second.fingerprint}",
            "",
            describe_comparison(found["comparison"]),
            "",
            f"prompt tokens a pair  {tokens['first']:.1f}, {tokens['second']:.1f}",
            f"ms a pair here        {ms['first']:.1f}, {ms['second']:.1f};"
            f" ratio {ratio['least']:.2f} / {ratio['median']:.2f} / {ratio['greatest']:.2f}",
            "",
            "farthest apart        " + ", ".join(
                f"{each['id']} ({each['scores'][0]:.2f} to {each['scores'][1]:.2f})" for each in farthest[:_FARTHEST]
            ),
        ]  # fmt: skip
        return "\n".join([*lines, *(["", format_table(self.evaluation)] if self.evaluation else [])])


def compare_checkpoints(
    first: Path, second: Path, pairs_file: Path, criteria: str | None, *, seed: int, on_progress: OnProgress
) -> Compared:
    """Score a file of pairs with both. `criteria`: each one's default where it is None.

    Raises CheckpointError, DataError, ComparisonError where the two have other scales or one lacks the criteria, and PromptingError
    for pairs that one can't read, before any is scored.
    """
    checkpoints = [load_checkpoint(folder) for folder in (first, second)]
    _check(checkpoints, criteria)
    grades = len(checkpoints[0].manifest.labels)
    source = Source("pairs", criteria or checkpoints[0].renderer.default_criteria, tuple(range(grades)))
    pairs = read_pairs(pairs_file, source, judged=False)
    a, b = sides = [_Scorer(checkpoint, criteria, pairs) for checkpoint in checkpoints]
    for start in range(0, len(pairs), _CHUNK):
        for side in sides:
            side.score(start, start + _CHUNK)
        on_progress("Score with both", min(start + _CHUNK, len(pairs)), len(pairs))
    comparison = Comparison(grades)
    for rows in _rows_by_query(pairs):
        comparison.add(*([_graded(side.side.judgements[row]) for row in rows] for side in (a, b)))
    return Compared(pairs, a.side, b.side, comparison, _evaluate(pairs, a.side, b.side, seed))


def _check(checkpoints: Sequence[Checkpoint], criteria: str | None) -> None:
    scales = [[label.gain for label in checkpoint.manifest.labels] for checkpoint in checkpoints]
    if scales[0] != scales[1]:
        raise ComparisonError(f"the two grade on other scales (gains {scales[0]} and {scales[1]})")
    for checkpoint in checkpoints:
        known = checkpoint.renderer.criteria_names
        if criteria is not None and criteria not in known:
            raise ComparisonError(
                f"{checkpoint.manifest.name} has no criteria {criteria}: it has {', '.join(known)}"
            )


class _Scorer:
    """One checkpoint. Raises PromptingError for a pair that it can't read, before any is scored."""

    def __init__(self, checkpoint: Checkpoint, criteria: str | None, pairs: Sequence[Pair]) -> None:
        manifest = checkpoint.manifest
        self.side = Side(manifest.name, manifest.fingerprint)
        self._checkpoint = checkpoint
        self._criteria = criteria or checkpoint.renderer.default_criteria
        self._prompts = render_for(checkpoint, [replace(pair, criteria=self._criteria) for pair in pairs])
        self._sampler = Sampler(load_as_served(checkpoint.folder), manifest.label_token_ids, 0)

    def score(self, start: int, stop: int) -> None:
        """Add the judgements of these pairs, and what they took."""
        started, prompts = time.perf_counter(), self._prompts[start:stop]
        probabilities, masses = self._sampler.distributions(prompts, _BATCH_SIZE)
        for row, mass in zip(probabilities.tolist(), masses.tolist(), strict=True):
            raw = LabelDistribution(tuple(row), mass)
            self.side.judgements.append(judge(raw, self._checkpoint.manifest, self._criteria))
        self.side.seconds.append(time.perf_counter() - started)
        self.side.prompt_tokens += sum(map(len, prompts))


def _rows_by_query(pairs: Sequence[Pair]) -> Iterator[list[int]]:
    rows: dict[int, list[int]] = {}
    for row, query in enumerate(number_queries(pairs).tolist()):
        rows.setdefault(query, []).append(row)
    return iter(rows.values())


def _graded(judgement: Judgement) -> Graded:
    return Graded(judgement.grade, judgement.score)


def _evaluate(pairs: Sequence[Pair], first: Side, second: Side, seed: int) -> Evaluation | None:
    queries = {pair.query for pair in pairs}
    if any(pair.label == UNJUDGED for pair in pairs) or len(queries) < 2:
        return None
    # Two checkpoints may have one name.
    systems = [
        Predictions(
            f"{position} ({side.name})",
            np.array([each.distribution for each in side.judgements]),
            np.array([each.score for each in side.judgements]),
        )
        for position, side in (("first", first), ("second", second))
    ]
    return evaluate(systems, pairs, frozenset(), controls=[systems[0].system], seed=seed)
