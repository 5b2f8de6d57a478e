"""Checks the traces that a model writes for the dev pairs, and computes figures of each split from the checks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import f1_score
from transformers import PreTrainedModel

from model_export.data.gold_traces import citations_of
from model_export.data.pairs import Pair
from model_export.data.prepare import Data
from model_export.data.prompting import Prompting
from model_export.data.synthetic import UNSEEN
from model_export.evaluation.judged import Judged
from model_export.recipe import Recipe
from model_export.teacher.rollout import Sampler, Sampling
from model_export.teacher.step_mask import right_steps
from service.contract.trace import Trace

RANDOM, LONG_TAIL, UNSEEN_CRITERIA, ALL = "random", "long_tail", "unseen", "all"
NO_GRADE = -1
# Figures of one split, by name; those of a step by split.
Figures = dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Reading:
    """The checks of one trace that a model wrote for a pair.

    Attributes:
        splits: names of the splits to which the pair belongs.
        query: number of the pair's query, from 0; pairs with the same number have the same query.
        gold: the pair's gold grade.
        grade: the trace's grade, or NO_GRADE if the trace does not parse. Then the following attributes are 0 or False.
        right_steps: share of the trace's steps that are right.
        is_true: whether the trace has no false quote.
        is_consistent: whether the trace's last step has its grade.
    """

    splits: tuple[str, ...]
    query: int
    gold: int
    grade: int
    right_steps: float
    is_true: bool
    is_consistent: bool


@dataclass(frozen=True)
class Ruler:
    """Lets models write greedy traces for pairs, and checks these."""

    data: Data
    prompting: Prompting
    sampling: Sampling

    @classmethod
    def of(cls, data: Data, prompting: Prompting, recipe: Recipe) -> "Ruler":
        """Return the ruler of a run."""
        return cls(data, prompting, Sampling(recipe.rl.max_tokens, 0.0, recipe.evaluate.batch_size))

    def read(self, model: PreTrainedModel, pairs: Sequence[Pair]) -> list[Reading]:
        """Return the checks of the model's trace of each pair, in the pairs' order."""
        was_training = model.training
        sampler = Sampler(model, self.prompting.label_token_ids, self.prompting.end_token_id)
        completions = sampler.sample([self.prompting.teacher_prompt(pair) for pair in pairs], self.sampling)
        model.train(was_training)
        readings = []
        for pair, query, completion in zip(
            pairs, Judged.of(pairs).query_of.tolist(), completions, strict=True
        ):
            trace = self.prompting.reader.read(completion, self.prompting.steps(pair.criteria)).trace
            readings.append(Reading(self._splits(pair), query, pair.label, *_facts(trace, pair)))
        return readings

    def _splits(self, pair: Pair) -> tuple[str, ...]:
        """Name the splits of a pair: those of generated data, else all pairs and its source."""
        if pair.source in UNSEEN:
            return (UNSEEN_CRITERIA,)
        if not pair.findings:
            return (ALL, pair.source)
        return (RANDOM, LONG_TAIL) if pair.id in self.data.long_tail else (RANDOM,)


def _facts(trace: Trace | None, pair: Pair) -> tuple[int, float, bool, bool]:
    """Return the grade, the share of right steps, and whether the trace is true and consistent."""
    if trace is None:
        return NO_GRADE, 0.0, False, False
    right = right_steps(trace, pair, "step")
    is_true = all(citation.found for citation in citations_of(trace.steps, pair))
    return trace.grade, sum(right) / max(1, len(right)), is_true, trace.is_consistent


def figures_of(readings: Sequence[Reading]) -> Figures:
    """Return the figures of each split.

    Exact-grade accuracy and macro-F1, where a trace that does not parse is a wrong grade; shares of traces that parse, of right
    steps, of traces without a false quote, and of traces whose last step has the answer's grade.
    """
    rows: dict[str, list[Reading]] = {}
    for reading in readings:
        for split in reading.splits:
            rows.setdefault(split, []).append(reading)
    return {split: _figures(found) for split, found in rows.items()}


def _figures(rows: Sequence[Reading]) -> dict[str, float]:
    gold, grades = [row.gold for row in rows], [row.grade for row in rows]
    columns = {
        "accuracy": [row.grade == row.gold for row in rows],
        "parse_rate": [row.grade != NO_GRADE for row in rows],
        "step_accuracy": [row.right_steps for row in rows],
        "true": [row.is_true for row in rows],
        "consistent": [row.is_consistent for row in rows],
    }
    means = {name: float(np.mean(values)) for name, values in columns.items()}
    return means | {
        "macro_f1": float(f1_score(gold, grades, labels=sorted(set(gold)), average="macro", zero_division=0))
    }
