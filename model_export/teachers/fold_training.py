"""Trains a model of the recipe on the pairs of some folds, for the teachers that are built like the run's own models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from model_export.data.pairs import Pair
from model_export.data.prompting import Prompting
from model_export.progress import OnProgress
from model_export.recipe import Recipe
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
    run: Callable[[StageJob, Prompting, OnProgress], None]
    evidence: Path | None = None

    def train(
        self, stage: str, pairs: Sequence[Pair], start: Path | None, folder: Path, on_progress: OnProgress
    ) -> None:
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
        self.run(job, self.prompting, on_progress)
