"""Samples traces by the teacher itself, and keeps those to learn from: rejection sampling (STaR, arXiv 2203.14465)."""

from collections.abc import Iterable, Sequence

from model_export.data.gold_traces import citations_of
from model_export.data.pairs import Pair
from model_export.data.prompting import Prompting
from model_export.data.soft_labels import SoftLabel
from model_export.recipe_stages import OwnTracesConfig
from model_export.teacher.rollout import OnBatch, ReasoningPath, Sampler, Sampling, sample_paths
from model_export.teacher.step_mask import right_steps
from service.contract.trace import Trace


def sample_own_traces(
    pairs: Sequence[Pair],
    prompting: Prompting,
    sampler: Sampler,
    config: OwnTracesConfig,
    max_tokens: int,
    on_batch: OnBatch,
) -> list[SoftLabel]:
    """Return the first good trace of each pair that has one.

    Its answer and its last grade are gold, and the step mask would call each of its steps right; where the data has no findings
    to quote, it quotes something.
    """
    sampled = [pair for pair in pairs for _ in range(config.paths)]
    sampling = Sampling(max_tokens, config.temperature, config.batch_size)
    paths = sample_paths(sampled, prompting, sampler, sampling, on_batch)
    of_pairs = (paths[start : start + config.paths] for start in range(0, len(paths), config.paths))
    found = (first_good_trace(pair, own) for pair, own in zip(pairs, of_pairs, strict=True))
    return [trace for trace in found if trace]


def first_good_trace(pair: Pair, paths: Iterable[ReasoningPath | None]) -> SoftLabel | None:
    """Return the first trace to learn from, if any."""
    good = (path.steps for path in paths if path and _is_good(path.trace, pair))
    return next((SoftLabel(pair.id, (), {pair.label: steps}) for steps in good), None)


def _is_good(trace: Trace, pair: Pair) -> bool:
    quotes = bool(citations_of(trace.steps, pair)) or bool(pair.findings)
    reached = trace.grade == pair.label and trace.is_consistent
    return quotes and reached and all(right_steps(trace, pair, "step"))
