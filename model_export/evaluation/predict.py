"""What each trained system says of the dev pairs, for the table."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from model_export.data.pairs import GRADES, Pair
from model_export.data.prompting import Prompting
from model_export.evaluation.evaluate import Predictions
from model_export.teacher.rollout import OnBatch, Sampler, Sampling, sample_paths

_GAINS = np.array([2.0**grade - 1 for grade in GRADES])


def directly(
    system: str,
    pairs: Sequence[Pair],
    prompting: Prompting,
    sampler: Sampler,
    batch_size: int,
    on_batch: OnBatch,
) -> Predictions:
    """Of a model that answers first: the label distribution right after the prompt."""
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
    """Of a model that reasons first: the label distribution at the end of one path.

    A trace that does not parse gives no answer: its row is uniform, and so its grade the lowest.
    """
    paths = sample_paths(pairs, prompting, sampler, sampling, on_batch)
    parsed = np.array([path is not None for path in paths])
    probabilities = np.full((len(pairs), len(GRADES)), 1 / len(GRADES))
    if parsed.any():
        sequences = [path.before_answer for path in paths if path is not None]
        probabilities[parsed] = sampler.distributions(sequences, sampling.batch_size)[0].double().numpy()
    return make_predictions(system, probabilities, parsed)


def make_predictions(system: str, probabilities: np.ndarray, parsed: np.ndarray | None) -> Predictions:
    """Ranked by expected gain over the top gain, as the service's score is."""
    return Predictions(system, probabilities, probabilities @ _GAINS / _GAINS[-1], parsed)


def write_predictions(path: Path, predictions: Predictions) -> None:
    """One .npz file; `parsed` is empty where the system writes no trace."""
    parsed = np.array([]) if predictions.parsed is None else predictions.parsed
    np.savez(path, probabilities=predictions.probabilities, ranking=predictions.ranking, parsed=parsed)


def read_predictions(path: Path, system: str) -> Predictions:
    """What `write_predictions` wrote."""
    with np.load(path) as file:
        parsed = file["parsed"] if file["parsed"].size else None
        return Predictions(system, file["probabilities"], file["ranking"], parsed)
