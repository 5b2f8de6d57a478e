"""The arms of the experiment: how each gives credit to the tokens of a group's rollouts.

sft     more supervised training, with the compute of RL
grpo    GRPO: every token gets the rollout's advantage
dense   GRPO with process supervision (arXiv 2402.03300, 4.1.3): each step earns 1 if it is right, a token the normalised
        rewards of its own and all later steps. The fair control: it sees the same gold steps as the mask
prefix  VPPO (arXiv 2601.18984), our reading: a wrong rollout is rewarded before its first wrong step, punished from there on
final   the step mask that calls a step right if its grade is the gold grade
step    the step mask by the steps' own gold
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from model_export.data.pairs import Pair
from model_export.data.rollout_reader import Rollout
from model_export.teacher.rl_trainer import Credit
from model_export.teacher.step_mask import mask_advantages, right_steps

SFT, GRPO, STEP = "sft", "grpo", "step"


def dense_credit(pair: Pair, rollouts: Sequence[Rollout], _: Sequence[float]) -> list[list[float]]:
    """Return the sum of the normalised rewards from each token's step on, in place of the outcome's advantages."""
    earned = [_step_rewards(rollout, pair) for rollout in rollouts]
    everything = np.concatenate(earned)
    mean, spread = everything.mean(), everything.std() + 1e-4
    found = []
    for rollout, rewards in zip(rollouts, earned, strict=True):
        to_go = np.cumsum(((rewards - mean) / spread)[::-1])[::-1]
        found.append([float(to_go[_line_at(start, rollout)]) for start, _ in rollout.spans])
    return found


def _step_rewards(rollout: Rollout, pair: Pair) -> np.ndarray:
    """Return 1 for each right step and for a right answer, else 0; a rollout that does not parse is one wrong answer."""
    answer = rollout.trace is not None and rollout.trace.grade == pair.label
    return np.array([*right_steps(rollout.trace, pair, "step"), answer], dtype=float)


def prefix_credit(pair: Pair, rollouts: Sequence[Rollout], advantages: Sequence[float]) -> list[list[float]]:
    """Return the advantage, of the other sign before the first wrong step of a rollout whose advantage is negative."""
    found = []
    for rollout, advantage in zip(rollouts, advantages, strict=True):
        right = right_steps(rollout.trace, pair, "step")
        first_wrong = next((index for index, is_right in enumerate(right) if not is_right), len(right))
        is_good = [
            advantage < 0 and rollout.trace is not None and _line_at(start, rollout) < first_wrong
            for start, _ in rollout.spans
        ]
        found.append([-advantage if good else advantage for good in is_good])
    return found


def _line_at(position: int, rollout: Rollout) -> int:
    """Return the index of the step in whose line a character is; the number of steps for the answer."""
    steps = rollout.trace.steps if rollout.trace else ()
    return sum(position >= step.grade_span[1] for step in steps)


CREDITS: Mapping[str, Credit | None] = {
    GRPO: None,
    "dense": dense_credit,
    "prefix": prefix_credit,
    "final": partial(mask_advantages, rule="final"),
    STEP: partial(mask_advantages, rule="step"),
}
ARMS = (SFT, *CREDITS)
