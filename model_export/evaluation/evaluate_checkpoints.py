"""Evaluates checkpoint folders against one another and the controls, on the dev or the test pairs of a recipe's data."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from model_export.data.encoder import Encoder
from model_export.data.pairs import GRADES, Pair
from model_export.data.prepare import Data
from model_export.data.prompting import PromptForm, Prompting, render_for
from model_export.evaluation.baselines import bm25, by_cosine, majority
from model_export.evaluation.evaluate import DRAWS, Evaluation, EvaluationError, Predictions, evaluate
from model_export.evaluation.fitted import Fitted, fit
from model_export.evaluation.predict import by_log_probabilities, directly, make_predictions
from model_export.models.quantize import load_as_served
from model_export.progress import OnProgress
from model_export.recipe import Precision
from model_export.teacher.rollout import Sampler
from model_export.teachers.cross_encoder import is_cross_encoder, load_trained
from service.contract.checkpoint import Checkpoint, load_checkpoint

_BATCH_SIZE = 32
_CONTROLS = ("bm25", "majority")

Predict = Callable[[], Predictions]


@dataclass(frozen=True)
class System:
    """A system to evaluate.

    Attributes:
        prepare: checks that pairs fit the system, and returns the function that predicts their grades.
        on: replaces criteria that the system lacks by its default.
        shipped: the calibration and decisions that it is served with; None if they are to be fitted on dev.
    """

    name: str
    prepare: Callable[[Sequence[Pair]], Predict]
    on: Callable[[Sequence[Pair]], Sequence[Pair]] = lambda pairs: pairs
    shipped: Fitted | None = None


@dataclass(frozen=True)
class Measured:
    """The evaluation, and for each system the calibration and decisions that gave its grades or were fitted on these pairs."""

    evaluation: Evaluation
    fitted: Mapping[str, Fitted]

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON data."""
        return {
            **self.evaluation.to_json(),
            "fitted": {name: each.to_json() for name, each in self.fitted.items()},
        }


def list_controls(data: Data, encoders: Sequence[str], on_progress: OnProgress) -> list[System]:
    """List the systems that are not trained here: the majority grade, BM25 and encoders. Raises EncoderError."""
    loaded = [Encoder(name, on_progress) for name in encoders]
    return [
        System("majority", lambda pairs: partial(majority, data.train, pairs, len(GRADES))),
        System("bm25", lambda pairs: partial(bm25, data.train, pairs, len(GRADES))),
        *(System(each.name, partial(_prepare_cosine, each, data.train)) for each in loaded),
    ]


def _prepare_cosine(encoder: Encoder, train: Sequence[Pair], pairs: Sequence[Pair]) -> Predict:
    return partial(by_cosine, encoder.name, encoder.cosines, train, pairs, len(GRADES))


def list_checkpoints(
    folders: Sequence[Path], on_progress: OnProgress, precision: Precision = "float32"
) -> list[System]:
    """List these checkpoints under their manifests' names. Raises CheckpointError for an invalid folder."""

    def system(checkpoint: Checkpoint) -> System:
        manifest = checkpoint.manifest
        known = partial(_with_known_criteria, checkpoint)

        def prepare(pairs: Sequence[Pair]) -> Predict:
            prompts = render_for(checkpoint, known(pairs))
            return partial(_predict, checkpoint, prompts, precision, on_progress)

        return System(manifest.name, prepare, known, Fitted(manifest.calibration, manifest.decisions))

    return [system(load_checkpoint(folder)) for folder in folders]


def list_models(
    folders: Mapping[str, Path], form: PromptForm, on_progress: OnProgress, precision: Precision = "float32"
) -> list[System]:
    """List folders by name: models under the recipe's prompt, such as a run's label-only control, and cross-encoders."""

    def prepare(name: str, folder: Path, pairs: Sequence[Pair]) -> Predict:
        on_batch = partial(on_progress, f"Predict {name}")
        if is_cross_encoder(folder):
            return lambda: by_log_probabilities(name, load_trained(folder, precision, on_batch)(pairs))
        prompting = Prompting.load(form, folder)
        prompting.check_queries(pairs)

        def predict() -> Predictions:
            sampler = Sampler.load(folder, prompting, precision)
            return directly(name, pairs, prompting, sampler, _BATCH_SIZE, on_batch)

        return predict

    return [System(name, partial(prepare, name, folder)) for name, folder in folders.items()]


def evaluate_on_dev(
    systems: Sequence[System], main: str, data: Data, *, seed: int, draws: int = DRAWS
) -> Measured:
    """Evaluate on the dev pairs, with cross-fitted grades; all other systems are controls of `main`.

    The probabilities are raw, so ECE "after" shows the effect of a temperature.
    Raises: before anything is measured, EvaluationError for two systems of the same name, and PromptingError for a pair
    that does not fit a system's prompt.
    """
    predicted = _predict_all(systems, data.dev)
    found = evaluate(
        predicted, data.dev, data.long_tail, controls=_controls(systems, main), seed=seed, draws=draws
    )
    fits = [
        fit(each.probabilities, system.on(data.dev), seed)
        for system, each in zip(systems, predicted, strict=True)
    ]
    return Measured(found, dict(zip(found.rows, fits, strict=True)))


def evaluate_on_test(
    systems: Sequence[System],
    main: str,
    data: Data,
    pairs: Sequence[Pair],
    long_tail: frozenset[str],
    *,
    seed: int,
    draws: int = DRAWS,
) -> Measured:
    """Evaluate on test pairs, on which nothing is fitted: with what a system ships, or else with a fit on the dev pairs.

    Raises as `evaluate_on_dev` does.
    """
    unfitted = [system for system in systems if system.shipped is None]
    predicted_on_dev = {each.system: each.probabilities for each in _predict_all(unfitted, data.dev)}
    fits = {
        system.name: system.shipped or fit(predicted_on_dev[system.name], data.dev, seed)
        for system in systems
    }
    found = evaluate(
        _predict_all(systems, pairs),
        pairs,
        long_tail,
        controls=_controls(systems, main),
        fits=fits,
        seed=seed,
        draws=draws,
    )
    return Measured(found, fits)


def _controls(systems: Sequence[System], main: str) -> list[str]:
    """Name all other systems; BM25, what a search engine has without a model, comes first."""
    names = [system.name for system in systems if system.name != main]
    return sorted(names, key=lambda name: _CONTROLS.index(name) if name in _CONTROLS else len(_CONTROLS))


def _predict_all(systems: Sequence[System], pairs: Sequence[Pair]) -> list[Predictions]:
    names = [system.name for system in systems]
    if len(set(names)) < len(names):
        raise EvaluationError(f"systems must have distinct names, and the names are {names}")
    prepared = [system.prepare(pairs) for system in systems]
    return [predict() for predict in prepared]


def _with_known_criteria(checkpoint: Checkpoint, pairs: Sequence[Pair]) -> list[Pair]:
    """Replace criteria that the checkpoint lacks by its default."""
    renderer = checkpoint.renderer
    known = renderer.criteria_names
    return [
        pair if pair.criteria in known else replace(pair, criteria=renderer.default_criteria)
        for pair in pairs
    ]


def _predict(
    checkpoint: Checkpoint, prompts: Sequence[list[int]], precision: Precision, on_progress: OnProgress
) -> Predictions:
    manifest = checkpoint.manifest
    sampler = Sampler(load_as_served(checkpoint.folder, precision), manifest.label_token_ids, 0)
    stage = f"Predict {manifest.name}"
    probabilities, _ = sampler.distributions(prompts, _BATCH_SIZE, lambda *at: on_progress(stage, *at))
    return make_predictions(manifest.name, probabilities.double().numpy(), None)
