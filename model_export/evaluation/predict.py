"""Predicts the grades of the dev pairs with each trained system."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from model_export.data.pairs import GAINS, GRADES, Pair
from model_export.data.prompting import Prompting
from model_export.evaluation.evaluate import Predictions
from model_export.teacher.rollout import OnBatch, Sampler, Sampling, sample_paths


def directly(
    system: str,
    pairs: Sequence[Pair],
    prompting: Prompting,
    sampler: Sampler,
    batch_size: int,
    on_batch: OnBatch,
) -> Predictions:
    """Predict with a model that answers first: the label distribution right after the prompt."""
    prompts = [prompting.student_prompt(pair) for pair in pairs]
    probabilities, _ = sampler.distributions(prompts, batch_size, on_batch)
    return make_predictions(system, probabilities.double().numpy(), None)


def by_reasoning(
    system: str,
    pairs: Sequence[Pair],
    prompting: Prompting,
    sampler: Sampler,
    sampling: Sampling,
    on_batch: OnBatch,
) -> Predictions:
    """Predict with a model that reasons first: the label distribution at the end of one sampled path.

    If the trace does not parse, the row is uniform, and so the grade the lowest.
    """
    paths = sample_paths(pairs, prompting, sampler, sampling, on_batch)
    parsed = np.array([path is not None for path in paths])
    probabilities = np.full((len(pairs), len(GRADES)), 1 / len(GRADES))
    if parsed.any():
        sequences = [path.before_answer for path in paths if path is not None]
        probabilities[parsed] = sampler.distributions(sequences, sampling.batch_size)[0].double().numpy()
    return make_predictions(system, probabilities, parsed)


def by_log_probabilities(system: str, found: np.ndarray) -> Predictions:
    """Predict with the log-probability of each grade, (pairs, grades)."""
    return make_predictions(system, np.exp(found), None)


def make_predictions(system: str, probabilities: np.ndarray, parsed: np.ndarray | None) -> Predictions:
    """Make predictions ranked by the service's score: expected gain over the top gain."""
    return Predictions(system, probabilities, probabilities @ np.array(GAINS) / GAINS[-1], parsed)


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write one .npz file; its `parsed` is empty for a system without traces."""
    parsed = np.array([]) if predictions.parsed is None else predictions.parsed
    np.savez(path, probabilities=predictions.probabilities, ranking=predictions.ranking, parsed=parsed)


def read_predictions(path: Path, system: str) -> Predictions:
    """Read the file of `write_predictions`."""
    with np.load(path) as file:
        parsed = file["parsed"] if file["parsed"].size else None
        return Predictions(system, file["probabilities"], file["ranking"], parsed)
