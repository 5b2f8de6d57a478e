"""Stepwise Advantage Masking (SAM): which tokens of a rollout its advantage may move.

Source: arXiv 2512.00968; the rule for right steps is ours. A_i is the advantage of rollout i relative to its group (GRPO,
arXiv 2402.03300). Token t of rollout i gets A_i * m, where t is in the finding or the grade of step s:
  m = 1 if s is right and A_i > 0, or s is wrong and A_i < 0; else 0
  m = 1 if every rollout of the group that parses gets s right: such a step tells nothing, and GRPO moves a shared prefix by 0 in sum
All other tokens (names of steps, arrows, line ends, the answer) get A_i.
So a lucky answer does not reward the wrong steps before it, and a wrong answer does not punish the right ones.

When a step is right:
  "step"   where the data has its finding: if finding and grade equal it. Elsewhere unless it is provably wrong: its grade, the
           highest that is still possible, is below the gold grade or above that of the step before, or it cites what is not there
  "final"  if its grade is the gold grade: for traces in which each step gives a verdict of its own

A rollout that does not parse or was truncated has no steps: its advantage applies to all its tokens.
"""

from collections.abc import Sequence
from typing import Literal

from model_export.data.pairs import GRADES, Pair
from model_export.data.rollout_reader import Rollout
from service.contract.citations import read_citations
from service.contract.trace import Step, Trace

StepRule = Literal["step", "final"]


def right_steps(trace: Trace | None, pair: Pair, rule: StepRule) -> tuple[bool, ...]:
    """Return, for each step, whether it is right by the rule; nothing for a rollout that does not parse."""
    if trace is None:
        return ()
    if rule == "final":
        return tuple(step.grade == pair.label for step in trace.steps)
    before = (GRADES[-1], *(step.grade for step in trace.steps))
    return tuple(_is_right(step, most, pair) for step, most in zip(trace.steps, before, strict=False))


def _is_right(step: Step, most: int, pair: Pair) -> bool:
    gold = pair.findings.get(step.criterion)
    if gold is not None:
        return (step.finding, step.grade) == (gold.text, gold.grade)
    citations = read_citations(step.finding, pair.query, pair.note)
    return pair.label <= step.grade <= most and all(citation.found for citation in citations)


def mask_advantages(
    pair: Pair, rollouts: Sequence[Rollout], advantages: Sequence[float], rule: StepRule
) -> list[list[float]]:
    """Return the advantage of each token of the rollouts of one group."""
    right = [right_steps(rollout.trace, pair, rule) for rollout in rollouts]
    shared = {index for index, column in enumerate(zip(*filter(None, right), strict=True)) if all(column)}
    found = []
    for rollout, steps, advantage in zip(rollouts, right, advantages, strict=True):
        masked = [None if index in shared else is_right for index, is_right in enumerate(steps)]
        found.append([advantage * value for value in _mask(rollout, masked, advantage)])
    return found


def _mask(rollout: Rollout, right: Sequence[bool | None], advantage: float) -> list[float]:
    """Return the mask of one rollout; `right` is None for a step that is not masked."""
    steps = rollout.trace.steps if rollout.trace else ()
    by_token = (_step_at(span, steps) for span in rollout.spans)
    values = (None if step is None else right[step] for step in by_token)
    return [float(value is None or (advantage > 0 if value else advantage < 0)) for value in values]


def _step_at(token: tuple[int, int], steps: Sequence[Step]) -> int | None:
    """Return the index of the step in whose finding or grade a token lies, in part or whole."""
    start, end = token[0], max(token[1], token[0] + 1)  # the first bytes of a character have no width
    for index, step in enumerate(steps):
        if any(start < last and end > first for first, last in (step.finding_span, step.grade_span)):
            return index
    return None
