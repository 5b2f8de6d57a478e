"""Measures a model on the experiment's splits."""

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
from model_export.recipe import Recipe
from model_export.teacher.rollout import Sampler, Sampling
from model_export.teacher.step_mask import right_steps
from service.contract.trace import Trace

RANDOM, LONG_TAIL, UNSEEN_CRITERIA, ALL = "random", "long_tail", "unseen", "all"
# Figures of one split, by name; those of a step by split.
Figures = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Ruler:
    """Measures models on the dev pairs, with greedy traces."""

    data: Data
    prompting: Prompting
    sampling: Sampling

    @classmethod
    def of(cls, data: Data, prompting: Prompting, recipe: Recipe) -> "Ruler":
        """Return the ruler of a run."""
        return cls(data, prompting, Sampling(recipe.rl.max_tokens, 0.0, recipe.evaluate.batch_size))

    def measure(self, model: PreTrainedModel, pairs: Sequence[Pair]) -> Figures:
        """Return the figures of each split.

        Exact-grade accuracy and macro-F1, where a trace that does not parse is a wrong grade; shares of traces that parse, of
        right steps, of traces without a false quote, and of traces whose last step has the answer's grade.
        """
        was_training = model.training
        sampler = Sampler(model, self.prompting.label_token_ids, self.prompting.end_token_id)
        completions = sampler.sample([self.prompting.teacher_prompt(pair) for pair in pairs], self.sampling)
        model.train(was_training)
        rows: dict[str, list[_Row]] = {}
        for pair, completion in zip(pairs, completions, strict=True):
            trace = self.prompting.reader.read(completion, self.prompting.steps(pair.criteria)).trace
            for split in self._splits(pair):
                rows.setdefault(split, []).append(_Row.of(trace, pair))
        return {split: _figures(found) for split, found in rows.items()}

    def _splits(self, pair: Pair) -> tuple[str, ...]:
        """Name the splits of a pair: those of generated data, else all pairs and its source."""
        if pair.source in UNSEEN:
            return (UNSEEN_CRITERIA,)
        if not pair.findings:
            return (ALL, pair.source)
        return (RANDOM, LONG_TAIL) if pair.id in self.data.long_tail else (RANDOM,)


@dataclass(frozen=True, slots=True)
class _Row:
    """The figures of one trace. The grade is -1 where it does not parse."""

    gold: int
    grade: int
    right_steps: float
    is_true: bool
    is_consistent: bool

    @classmethod
    def of(cls, trace: Trace | None, pair: Pair) -> "_Row":
        if trace is None:
            return cls(pair.label, -1, 0.0, False, False)
        right = right_steps(trace, pair, "step")
        is_true = all(citation.found for citation in citations_of(trace.steps, pair))
        return cls(pair.label, trace.grade, sum(right) / max(1, len(right)), is_true, trace.is_consistent)


def _figures(rows: Sequence[_Row]) -> dict[str, float]:
    gold, grades = [row.gold for row in rows], [row.grade for row in rows]
    columns = {
        "accuracy": [row.grade == row.gold for row in rows],
        "parse_rate": [row.grade >= 0 for row in rows],
        "step_accuracy": [row.right_steps for row in rows],
        "true": [row.is_true for row in rows],
        "consistent": [row.is_consistent for row in rows],
    }
    means = {name: float(np.mean(values)) for name, values in columns.items()}
    return means | {
        "macro_f1": float(f1_score(gold, grades, labels=sorted(set(gold)), average="macro", zero_division=0))
    }
