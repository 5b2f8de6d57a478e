"""A training stage of a run: what it trains, from which weights, on which data and in which folder."""

from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from model_export.recipe import TINY_BASE, Recipe

TEACHER_STAGES = ("cot_sft", "self_sft", "rl")
OnStep = Callable[[int, int], None]


class StageJob(BaseModel):
    """A training stage, which several processes can read from a file. Folders are those of the run's stages.

    Attributes:
        start: transformers folder to start from; its tokenizer renders the prompts.
        folder: the stage's own; a saved state in it is resumed.
        ids: of the training pairs to train on; all by default.
        evidence: file of the traces of pairs without findings, for the SFT teacher.
        soft_labels: file of the teachers' labels, for the student.
        unlabelled: folder of pairs that nobody judged, which the student learns from besides the training pairs.
    """

    model_config = ConfigDict(frozen=True)

    stage: str
    recipe: Recipe
    data: Path
    start: Path
    folder: Path
    ids: frozenset[str] | None = None
    evidence: Path | None = None
    soft_labels: Path | None = None
    unlabelled: Path | None = None

    @property
    def from_scratch(self) -> bool:
        """Whether all weights learn, because those of the base are random: an adapter can't describe the difference."""
        model = self.recipe.model
        base = model.teacher if self.stage in TEACHER_STAGES else model.student_base
        return base == TINY_BASE
