"""Measures a model on the experiment's splits."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from model_export.data.pairs import Pair
from model_export.data.prepare import Data
from model_export.data.prompting import Prompting
from model_export.data.synthetic import UNSEEN
from model_export.recipe import Recipe
from model_export.teacher.rollout import Sampler, Sampling
from model_export.teacher.step_mask import right_steps

RANDOM, LONG_TAIL, UNSEEN_CRITERIA = "random", "long_tail", "unseen"
SPLITS = (RANDOM, LONG_TAIL, UNSEEN_CRITERIA)
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
        """Return, by split, the exact-grade accuracy and the shares of traces that parse and of right steps."""
        was_training = model.training
        sampler = Sampler(model, self.prompting.label_token_ids, self.prompting.end_token_id)
        completions = sampler.sample([self.prompting.teacher_prompt(pair) for pair in pairs], self.sampling)
        model.train(was_training)
        rows: dict[str, list[tuple[float, float, float]]] = {}
        for pair, completion in zip(pairs, completions, strict=True):
            trace = self.prompting.reader.read(completion, self.prompting.steps(pair.criteria)).trace
            right = right_steps(trace, pair, "step")
            figures = (
                float(trace is not None and trace.grade == pair.label),
                float(trace is not None),
                sum(right) / len(right) if right else 0.0,
            )
            for split in self._splits(pair):
                rows.setdefault(split, []).append(figures)
        names = ("accuracy", "parse_rate", "step_accuracy")
        return {
            split: {
                name: sum(column) / len(found)
                for name, column in zip(names, zip(*found, strict=True), strict=True)
            }
            for split, found in rows.items()
        }

    def _splits(self, pair: Pair) -> tuple[str, ...]:
        if pair.source in UNSEEN:
            return (UNSEEN_CRITERIA,)
        return (RANDOM, LONG_TAIL) if pair.id in self.data.long_tail else (RANDOM,)
