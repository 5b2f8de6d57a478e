"""A teacher that is built like the student and learns the gold grades alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from model_export.data.pairs import Pair
from model_export.data.prompting import Prompting
from model_export.progress import OnProgress
from model_export.recipe import Recipe
from model_export.teacher.rollout import Sampler
from model_export.teachers.base import Learner
from model_export.training.stage_job import StageJob


@dataclass(frozen=True, slots=True)
class FoldTraining:
    """Trains a learner by a stage of the recipe, on the pairs of a fold.

    Attributes:
        data: folder of the run's data.
        base: folder of the model that they start from.
        evidence: file of the traces of pairs without findings.
        run: trains the stage that a job describes.
    """

    recipe: Recipe
    data: Path
    base: Path
    prompting: Prompting
    run: Callable[[StageJob, Prompting], None]
    on_progress: OnProgress
    evidence: Path | None = None

    def train(self, stage: str, pairs: Sequence[Pair], start: Path | None, folder: Path) -> None:
        """Train the stage on these pairs, from the base unless `start` is given."""
        ids = frozenset(pair.id for pair in pairs)
        job = StageJob(
            stage=stage,
            recipe=self.recipe,
            data=self.data,
            start=start or self.base,
            folder=folder,
            ids=ids,
            evidence=self.evidence,
        )
        self.run(job, self.prompting)


class LabelOnlyTeacher:
    """Computes the logarithms of the grades' probabilities right after the prompt."""

    name = "label_only"
    starts_from: Learner | None = None
    chunk: int | None = 2048

    def __init__(self, training: FoldTraining) -> None:
        recipe = training.recipe
        steps = recipe.stack.label_only_steps or recipe.label_only_sft.steps
        config = recipe.label_only_sft.model_copy(update={"steps": steps})
        self._training = replace(training, recipe=recipe.model_copy(update={"label_only_sft": config}))
        self.settings: Mapping[str, object] = {
            "base": training.base.name,
            "form": training.prompting.form.of_student.to_json(),
            "config": config.model_dump(exclude={"save_steps", "micro_batch"}),
            "precision": recipe.evaluate.precision,
            "seed": recipe.seed,
        }

    def train(self, pairs: Sequence[Pair], start: Path | None, folder: Path) -> None:
        """Train the base on the grades of these pairs."""
        self._training.train("label_only_sft", pairs, start, folder)

    def features(self, pairs: Sequence[Pair], model: Path) -> np.ndarray:
        """Compute (pairs, grades) features."""
        config = self._training.recipe.evaluate
        sampler = Sampler.load(model, self._training.prompting, config.precision)
        prompts = [self._training.prompting.student_prompt(pair) for pair in pairs]

        on_batch = partial(self._training.on_progress, f"Features of {self.name}")
        found, _ = sampler.distributions(prompts, config.batch_size, on_batch)
        return log_probabilities(found.double().numpy())


def log_probabilities(probabilities: np.ndarray) -> np.ndarray:
    """Compute finite logarithms: a probability below one in a million counts as that."""
    found: np.ndarray = np.log(np.clip(probabilities, 1e-6, None))
    return found
