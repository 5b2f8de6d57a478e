"""Compares two checkpoints on the same pairs: how grades and scores would change, and how cost would.

Grades and scores are what the service would answer, computed with transformers in float32. Labels are optional; if all
pairs have one, both checkpoints are evaluated against them as well, with calibrated probabilities.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from model_export.data.pairs import UNJUDGED, Pair, Source, read_pairs
from model_export.data.prompting import render_for
from model_export.evaluation.evaluate import Evaluation, Predictions, evaluate, format_table
from model_export.evaluation.judged import Judged
from model_export.models.quantize import load_as_served
from model_export.progress import OnProgress
from model_export.teacher.rollout import Sampler
from service.contract.checkpoint import Checkpoint, load_checkpoint
from service.contract.comparison import Comparison, Graded, describe_comparison
from service.contract.judgement import Judgement, judge
from service.contract.labels import LabelDistribution
from service.errors import NotegradeError

_BATCH_SIZE = 32
# The checkpoints take turns on each chunk, so that a change in machine load affects both.
_CHUNK = 8 * _BATCH_SIZE
_MAX_LARGEST_CHANGES = 10


class ComparisonError(NotegradeError):
    """The checkpoints can't be compared."""


class Side:
    """One checkpoint, its judgements in the pairs' order, and their cost.

    Attributes:
        seconds: duration of each chunk.
        prompt_tokens: total over all pairs.
    """

    def __init__(self, checkpoint: Checkpoint, criteria: str | None, pairs: Sequence[Pair]) -> None:
        """Load the model. Raises PromptingError for a pair that does not fit the checkpoint's prompt."""
        self.manifest = checkpoint.manifest
        self.judgements: list[Judgement] = []
        self.seconds: list[float] = []
        self._criteria = criteria or checkpoint.renderer.default_criteria
        self._prompts = render_for(checkpoint, [replace(pair, criteria=self._criteria) for pair in pairs])
        self.prompt_tokens = sum(map(len, self._prompts))
        self._sampler = Sampler(load_as_served(checkpoint.folder), self.manifest.label_token_ids, 0)

    def score(self, start: int, stop: int) -> None:
        """Add the judgements of the pairs from `start` to `stop`, and their duration."""
        started = time.perf_counter()
        probabilities, masses = self._sampler.distributions(self._prompts[start:stop], _BATCH_SIZE)
        for row, mass in zip(probabilities.tolist(), masses.tolist(), strict=True):
            self.judgements.append(judge(LabelDistribution(tuple(row), mass), self.manifest, self._criteria))
        self.seconds.append(time.perf_counter() - started)


@dataclass(frozen=True)
class Compared:
    """The result of `compare_checkpoints`: `first` is the checkpoint in service, `second` the candidate."""

    pairs: Sequence[Pair]
    first: Side
    second: Side
    comparison: Comparison
    evaluation: Evaluation | None

    @property
    def time_ratios(self) -> list[float]:
        """The second checkpoint's time over the first's, per chunk."""
        return [b / a for a, b in zip(self.first.seconds, self.second.seconds, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON data; pairs are named by id, without their text."""
        sides = {"first": self.first, "second": self.second}
        return {
            **{key: {"name": side.manifest.name, **side.manifest.versions} for key, side in sides.items()},
            "comparison": self.comparison.to_json(),
            "cost": {
                "prompt_tokens_per_pair": {key: side.prompt_tokens / len(self.pairs) for key, side in sides.items()},
                "ms_per_pair": {key: 1000 * sum(side.seconds) / len(self.pairs) for key, side in sides.items()},
                "time_ratio": {"min": min(self.time_ratios), "median": statistics.median(self.time_ratios), "max": max(self.time_ratios)},
            },
            "evaluation": self.evaluation.to_json() if self.evaluation else None,
            "pairs": [
                {"id": pair.id, "grades": [a.grade, b.grade], "scores": [a.score, b.score]}
                for pair, a, b in zip(self.pairs, self.first.judgements, self.second.judgements, strict=True)
            ],
        }  # fmt: skip

    def describe(self) -> str:
        """Format the comparison as plain text."""
        found = self.to_json()
        cost = found["cost"]
        tokens, ms, ratio = cost["prompt_tokens_per_pair"], cost["ms_per_pair"], cost["time_ratio"]
        by_change = sorted(found["pairs"], key=lambda each: -abs(each["scores"][1] - each["scores"][0]))
        lines = [
            *(
                f"{key:<8}{found[key]['name']} {found[key]['fingerprint']}, grading version {found[key]['grading_version']}"
                for key in ("first", "second")
            ),
            "",
            describe_comparison(found["comparison"]),
            "",
            f"prompt tokens/pair    {tokens['first']:.1f}, {tokens['second']:.1f}",
            f"ms/pair here          {ms['first']:.1f}, {ms['second']:.1f};"
            f" ratio min {ratio['min']:.2f}, median {ratio['median']:.2f}, max {ratio['max']:.2f}",
            "",
            "largest changes       " + ", ".join(
                f"{each['id']} ({each['scores'][0]:.2f} to {each['scores'][1]:.2f})"
                for each in by_change[:_MAX_LARGEST_CHANGES]
            ),
        ]  # fmt: skip
        return "\n".join([*lines, *(["", format_table(self.evaluation)] if self.evaluation else [])])


def compare_checkpoints(
    first: Path, second: Path, pairs_file: Path, criteria: str | None, *, seed: int, on_progress: OnProgress
) -> Compared:
    """Score a file of pairs with both checkpoints, under `criteria` or each checkpoint's default.

    Raises: before any pair is scored, CheckpointError, DataError, ComparisonError when the grade scales differ or a
    checkpoint lacks the criteria, and PromptingError for pairs that do not fit its prompt.
    """
    checkpoints = [load_checkpoint(folder) for folder in (first, second)]
    _check(checkpoints, criteria)
    grades = len(checkpoints[0].manifest.labels)
    source = Source("pairs", criteria or checkpoints[0].renderer.default_criteria, tuple(range(grades)))
    pairs = read_pairs(pairs_file, source, judged=False)
    a, b = sides = [Side(checkpoint, criteria, pairs) for checkpoint in checkpoints]
    for start in range(0, len(pairs), _CHUNK):
        for side in sides:
            side.score(start, start + _CHUNK)
        on_progress("Score with both", min(start + _CHUNK, len(pairs)), len(pairs))
    comparison = Comparison(grades)
    rows_by_query: dict[int, list[int]] = {}
    for row, query in enumerate(Judged.of(pairs).query_of.tolist()):
        rows_by_query.setdefault(query, []).append(row)
    for rows in rows_by_query.values():
        judged = ([side.judgements[row] for row in rows] for side in sides)
        comparison.add(*([Graded(each.grade, each.score) for each in own] for own in judged))
    return Compared(pairs, a, b, comparison, _evaluate(pairs, a, b, seed))


def _check(checkpoints: Sequence[Checkpoint], criteria: str | None) -> None:
    scales = [[label.gain for label in checkpoint.manifest.labels] for checkpoint in checkpoints]
    if scales[0] != scales[1]:
        raise ComparisonError(
            f"the checkpoints have different grade scales (gains {scales[0]} and {scales[1]})"
        )
    for checkpoint in checkpoints:
        known = checkpoint.renderer.criteria_names
        if criteria is not None and criteria not in known:
            raise ComparisonError(
                f"{checkpoint.manifest.name} has no criteria {criteria}; it has {', '.join(known)}"
            )


def _evaluate(pairs: Sequence[Pair], first: Side, second: Side, seed: int) -> Evaluation | None:
    queries = {pair.query for pair in pairs}
    if any(pair.label == UNJUDGED for pair in pairs) or len(queries) < 2:
        return None
    # The two checkpoints may have the same name.
    systems = [
        Predictions(
            f"{position} ({side.manifest.name})",
            np.array([each.distribution for each in side.judgements]),
            np.array([each.score for each in side.judgements]),
        )
        for position, side in (("first", first), ("second", second))
    ]
    return evaluate(systems, pairs, frozenset(), controls=[systems[0].system], seed=seed)
