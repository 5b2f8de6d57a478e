"""The generative teacher: it reasons before it grades, and its grade is the mean over several sampled paths."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from transformers import set_seed

from model_export.data.pairs import GRADES, Pair
from model_export.progress import OnProgress
from model_export.teacher.label import label_pairs
from model_export.teacher.rollout import Sampler
from model_export.teachers.base import Features, Learner, finite_logs
from model_export.teachers.fold_training import FoldTraining


class ReasoningTeacher:
    """Computes the logarithms of the grades' mean probabilities after reasoning; equal ones where no path parses."""

    name = "reasoning"
    chunk: int | None = 64
    parallel = True

    def __init__(self, training: FoldTraining, starts_from: Learner | None) -> None:
        """Train as `cot_sft` of the recipe does, from the model of `starts_from` or, without one, from the base."""
        recipe = training.recipe
        self._training = training
        self.starts_from = starts_from
        self.settings: Mapping[str, object] = {
            "base": training.base.name,
            "form": training.prompting.form.to_json(),
            "config": recipe.cot_sft.model_dump(exclude={"save_steps", "min_parse_rate", "micro_batch"}),
            "evidence": training.evidence and training.evidence.parent.name,
            "label": recipe.label.model_dump(exclude={"folder", "pairs", "teacher", "source_exponent"}),
            "precision": recipe.model.precision,
            "max_tokens": recipe.rl.max_tokens,
            "seed": recipe.seed,
        }

    def train(self, pairs: Sequence[Pair], start: Path | None, folder: Path, on_progress: OnProgress) -> None:
        """Train on the traces of these pairs."""
        self._training.train("cot_sft", pairs, start, folder, on_progress)

    def load(self, model: Path, on_progress: OnProgress) -> Features:
        """Load the model, for (pairs, grades) features."""
        recipe, prompting = self._training.recipe, self._training.prompting
        sampler = Sampler.load(model, prompting, recipe.model.precision)
        on_batch = partial(on_progress, f"Features of {self.name}")

        def features(pairs: Sequence[Pair]) -> np.ndarray:
            set_seed(recipe.seed)
            labels = label_pairs(pairs, prompting, sampler, recipe.label, recipe.rl.max_tokens, on_batch)
            by_id = {label.id: label.distribution for label in labels}
            unknown = (1 / len(GRADES),) * len(GRADES)
            return finite_logs(np.array([by_id.get(pair.id, unknown) for pair in pairs]))

        return features
