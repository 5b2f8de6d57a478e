"""Soft labels: the teacher's answer distribution, averaged over several sampled reasoning paths of a pair."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from model_export.data.gold_traces import is_honest
from model_export.data.pairs import Pair
from model_export.data.prompting import Prompting
from model_export.recipe_stages import LabelConfig
from model_export.stages import write_whole
from model_export.teacher.rollout import OnBatch, Sampler, Sampling, sample_paths

SOFT_LABELS = "soft_labels.jsonl"  # in the folder of a stage that labels


@dataclass(frozen=True, slots=True)
class SoftLabel:
    """The label of one pair, by the generative teacher or by the stack.

    Attributes:
        distribution: lowest grade first; the generative teacher's is the mean over its paths that parse.
        paths: number of its paths that parse.
        traces: texts of steps for the student to learn, by the grade that they explain and end on. The generative teacher has one,
            the honest path whose answer distribution is closest to the mean: it cites only what is there, and explains the path's
            most probable grade. Empty where no path is honest.
    """

    id: str
    distribution: tuple[float, ...]
    paths: int
    traces: Mapping[int, str]


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
    """Average (honest steps, answer distribution) of several paths into one soft label."""
    mean = tuple(sum(column) / len(paths) for column in zip(*(answer for _, answer in paths), strict=True))
    # Rounded, so that ties (two paths always tie) go to the first path and not to a rounding error.
    distances = [round(sum(abs(p - q) for p, q in zip(answer, mean, strict=True)), 9) for _, answer in paths]
    honest = [
        (distance, {_most_probable(answer): steps})
        for distance, (steps, answer) in zip(distances, paths, strict=True)
        if steps
    ]
    return SoftLabel(id_, mean, len(paths), min(honest, key=lambda each: each[0])[1] if honest else {})


def write_soft_labels(path: Path, labels: Iterable[SoftLabel]) -> None:
    """Write JSON lines, one per pair. A kill leaves no incomplete file."""
    write_whole(path, "".join(json.dumps(asdict(label), ensure_ascii=False) + "\n" for label in labels))


def read_soft_labels(path: Path) -> dict[str, SoftLabel]:
    """Read soft labels by id of their pair."""
    lines, parser = path.read_text(encoding="utf-8").split("\n"), TypeAdapter(SoftLabel)
    labels = (parser.validate_json(line) for line in lines if line)
    return {label.id: label for label in labels}
