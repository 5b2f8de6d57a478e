"""A teacher that is built like the student and learns the gold grades alone."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from model_export.data.pairs import Pair
from model_export.progress import OnProgress
from model_export.teacher.rollout import Sampler
from model_export.teachers.base import Features, Learner, finite_logs
from model_export.teachers.fold_training import FoldTraining


class LabelOnlyTeacher:
    """Computes the logarithms of the grades' probabilities right after the prompt."""

    name = "label_only"
    starts_from: Learner | None = None
    chunk: int | None = 512
    parallel = True

    def __init__(self, training: FoldTraining) -> None:
        recipe = training.recipe
        steps = recipe.stack.label_only_steps or recipe.label_only_sft.steps
        config = recipe.label_only_sft.model_copy(update={"steps": steps})
        self._training = replace(training, recipe=recipe.model_copy(update={"label_only_sft": config}))
        self.settings: Mapping[str, object] = {
            "base": training.base.name,
            "form": training.prompting.form.of_student.to_json(),
            "config": config.model_dump(exclude={"save_steps", "micro_batch"}),
            "precision": recipe.model.precision,
            "seed": recipe.seed,
        }

    def train(self, pairs: Sequence[Pair], start: Path | None, folder: Path, on_progress: OnProgress) -> None:
        """Train the base on the grades of these pairs."""
        self._training.train("label_only_sft", pairs, start, folder, on_progress)

    def load(self, model: Path, on_progress: OnProgress) -> Features:
        """Load the model, for (pairs, grades) features."""
        recipe, prompting = self._training.recipe, self._training.prompting
        sampler = Sampler.load(model, prompting, recipe.model.precision)
        on_batch = partial(on_progress, f"Features of {self.name}")

        def features(pairs: Sequence[Pair]) -> np.ndarray:
            prompts = [prompting.student_prompt(pair) for pair in pairs]
            found, _ = sampler.distributions(prompts, recipe.evaluate.batch_size, on_batch)
            return finite_logs(found.double().numpy())

        return features
