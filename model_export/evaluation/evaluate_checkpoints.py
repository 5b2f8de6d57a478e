"""Evaluates checkpoint folders against one another, majority and BM25, on the dev pairs of a recipe's data."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from model_export.data.pairs import Pair
from model_export.data.prepare import Data
from model_export.data.prompting import render_for
from model_export.evaluation.baselines import bm25, majority
from model_export.evaluation.evaluate import (
    Evaluation,
    EvaluationError,
    Predictions,
    evaluate,
)
from model_export.evaluation.fit_calibration import apply_calibration, make_calibration
from model_export.evaluation.fit_decision import choose, make_decisions
from model_export.evaluation.judged import Judged
from model_export.evaluation.measures import most_probable
from model_export.evaluation.predict import make_predictions
from model_export.models.quantize import load_as_served
from model_export.progress import OnProgress
from model_export.recipe import Precision
from model_export.teacher.rollout import Sampler
from service.contract.checkpoint import Checkpoint, load_checkpoint
from service.contract.manifest import Calibration, Decision

_BATCH_SIZE = 32


@dataclass(frozen=True)
class Fitted:
    """A calibration and decisions fitted on dev pairs."""

    calibration: Calibration
    decisions: tuple[Decision, ...]

    def choose_grades(self, probabilities: np.ndarray, criteria: Sequence[str]) -> list[int]:
        """Choose grades as the service does, from (pairs, grades) raw probabilities and each pair's criteria."""
        calibrated = apply_calibration(probabilities, self.calibration, criteria)
        grades = most_probable(calibrated)
        for decision in self.decisions:
            here = np.array(criteria) == decision.criteria
            grades[here] = choose(calibrated[here], np.array(decision.utilities))
        return list(map(int, grades))

    def to_json(self) -> dict[str, Any]:
        """Return both in the format of the manifest and of adapter.json."""
        decisions = [each.model_dump(mode="json") for each in self.decisions]
        return {"calibration": self.calibration.model_dump(mode="json"), "decisions": decisions}


@dataclass(frozen=True)
class Measured:
    """The evaluation, and by checkpoint name the calibration and decisions fitted on these dev pairs."""

    evaluation: Evaluation
    fitted: dict[str, Fitted]

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON data."""
        return {
            **self.evaluation.to_json(),
            "fitted": {name: each.to_json() for name, each in self.fitted.items()},
        }


def evaluate_checkpoints(
    folders: Sequence[Path],
    data: Data,
    *,
    seed: int,
    draws: int,
    on_progress: OnProgress,
    precision: Precision = "float32",
) -> Measured:
    """Evaluate these checkpoints under their manifests' names; all other systems are controls of the first checkpoint.

    The probabilities are raw, so ECE "after" shows the effect of a temperature.
    Raises: before anything is measured, CheckpointError for an invalid folder, EvaluationError for two checkpoints of
    the same name, and PromptingError for a pair that does not fit a checkpoint's prompt.
    """
    checkpoints = [load_checkpoint(folder) for folder in folders]
    names = [checkpoint.manifest.name for checkpoint in checkpoints]
    if len(set(names)) < len(names):
        raise EvaluationError(f"checkpoints must have distinct names, and the names are {names}")
    grades = len(checkpoints[0].manifest.labels)
    pairs = [_with_known_criteria(checkpoint, data.dev) for checkpoint in checkpoints]
    prompts = list(map(render_for, checkpoints, pairs))
    systems = [majority(data.train, data.dev, grades), bm25(data.train, data.dev, grades)]
    predicted = [_predict(*each, precision, on_progress) for each in zip(checkpoints, prompts, strict=True)]
    controls = ["bm25", "majority", *names[1:]]
    found = evaluate(
        [*systems, *predicted], data.dev, data.long_tail, controls=controls, seed=seed, draws=draws
    )
    fits = [fit(each, known, seed) for each, known in zip(predicted, pairs, strict=True)]
    return Measured(found, dict(zip(names, fits, strict=True)))


def _with_known_criteria(checkpoint: Checkpoint, pairs: Sequence[Pair]) -> list[Pair]:
    """Replace criteria that the checkpoint lacks by its default."""
    renderer = checkpoint.renderer
    known = renderer.criteria_names
    return [
        pair if pair.criteria in known else replace(pair, criteria=renderer.default_criteria)
        for pair in pairs
    ]


def fit(predictions: Predictions, pairs: Sequence[Pair], seed: int) -> Fitted:
    """Fit the calibration and the decisions on these dev pairs, per criteria.

    Raises CalibrationDataError with fewer than two queries.
    """
    judged = Judged.of(pairs)
    data_name = f"{len(pairs)} dev pairs of {', '.join(dict.fromkeys(pair.source for pair in pairs))}"
    raw = predictions.probabilities
    calibration = make_calibration(raw, judged, data_name=data_name, seed=seed)
    calibrated = apply_calibration(raw, calibration, judged.criteria)
    decisions = make_decisions(calibrated, judged, seed=seed, data_name=data_name)
    return Fitted(calibration, decisions)


def _predict(
    checkpoint: Checkpoint, prompts: Sequence[list[int]], precision: Precision, on_progress: OnProgress
) -> Predictions:
    manifest = checkpoint.manifest
    sampler = Sampler(load_as_served(checkpoint.folder, precision), manifest.label_token_ids, 0)
    stage = f"Predict {manifest.name}"
    probabilities, _ = sampler.distributions(prompts, _BATCH_SIZE, lambda *at: on_progress(stage, *at))
    return make_predictions(manifest.name, probabilities.double().numpy(), None)
