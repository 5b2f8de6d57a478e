"""Soft labels: the teacher's answer distribution, averaged over several sampled reasoning paths of a pair."""

from collections.abc import Sequence

from model_export.data.gold_traces import is_honest
from model_export.data.pairs import Pair
from model_export.data.prompting import Prompting
from model_export.data.soft_labels import SoftLabel
from model_export.recipe_stages import LabelConfig
from model_export.teacher.rollout import OnBatch, Sampler, Sampling, sample_paths


def label_pairs(
    pairs: Sequence[Pair],
    prompting: Prompting,
    sampler: Sampler,
    config: LabelConfig,
    max_tokens: int,
    on_batch: OnBatch,
) -> list[SoftLabel]:
    """Return the soft labels of the pairs, in order. A pair is left out when none of its paths parses."""
    sampled = [pair for pair in pairs for _ in range(config.paths)]
    sampling = Sampling(max_tokens, config.temperature, config.batch_size)
    paths = sample_paths(sampled, prompting, sampler, sampling, on_batch)
    found = [(pair, path) for pair, path in zip(sampled, paths, strict=True) if path]
    if not found:
        return []
    answers, _ = sampler.distributions([path.before_answer for _, path in found], config.batch_size)
    by_pair: dict[str, list[tuple[str, list[float]]]] = {}
    for (pair, path), answer in zip(found, answers.tolist(), strict=True):
        by_pair.setdefault(pair.id, []).append((honest_steps(pair, path.steps, answer), answer))
    return [average(id_, paths) for id_, paths in by_pair.items()]


def honest_steps(pair: Pair, steps: str, answer: Sequence[float]) -> str:
    """Return the steps of a path if they are honest, else the empty text."""
    return steps if is_honest(steps, _most_probable(answer), pair) else ""


def _most_probable(answer: Sequence[float]) -> int:
    return list(answer).index(max(answer))


def average(id_: str, paths: Sequence[tuple[str, Sequence[float]]]) -> SoftLabel:
    """Average (honest steps, answer distribution) of several paths into one soft label.

    Its trace is the honest path whose answer is closest to the mean, behind the path's most probable grade.
    """
    mean = tuple(sum(column) / len(paths) for column in zip(*(answer for _, answer in paths), strict=True))
    # Rounded, so that ties (two paths always tie) go to the first path and not to a rounding error.
    distances = [round(sum(abs(p - q) for p, q in zip(answer, mean, strict=True)), 9) for _, answer in paths]
    honest = [
        (distance, {_most_probable(answer): steps})
        for distance, (steps, answer) in zip(distances, paths, strict=True)
        if steps
    ]
    return SoftLabel(id_, mean, min(honest, key=lambda each: each[0])[1] if honest else {})
