"""Stepwise Advantage Masking (SAM): which tokens of a rollout its advantage may move.

Source: arXiv 2512.00968; this is our reading of it. With A_i the advantage of rollout i relative to its group (GRPO,
arXiv 2402.03300) and g the gold grade, token t of step s gets A_it = A_i * m:
  m = 1 where the step is right (its intermediate grade is g) and A_i > 0, or wrong and A_i < 0; else 0
  m = 1 for the answer, always
So a lucky answer does not reward the wrong steps before it, and a wrong one does not punish the right ones.

A rollout that does not parse or was truncated has no steps: its advantage applies to all its tokens, as in GRPO. The same
holds where the criteria have no steps.
"""

from collections.abc import Sequence

from model_export.data.rollout_reader import Rollout
from service.contract.trace import Step


def step_mask(rollout: Rollout, gold: int, advantage: float) -> list[float]:
    """Return, for each token of the rollout, 1.0 if the advantage may move it, else 0.0."""
    if rollout.trace is None:
        return [1.0] * len(rollout.starts)
    steps = (_step_at(start, rollout.trace.steps) for start in rollout.starts)
    return [float(step is None or _counts(step, gold, advantage)) for step in steps]


def _counts(step: Step, gold: int, advantage: float) -> bool:
    right = step.grade == gold
    return (right and advantage > 0) or (not right and advantage < 0)


def _step_at(position: int, steps: Sequence[Step]) -> Step | None:
    """Return the step in whose line a token starts; None in the answer."""
    return next((step for step in steps if step.span[0] <= position < step.span[1]), None)
