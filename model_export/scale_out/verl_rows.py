"""The task of a row of verl's data, and the reward and the step mask of its rollouts.

verl_export.py writes the rows. Processes of verl import this module, so it needs nothing that locks/verl.lock lacks.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import TypeAdapter

from model_export.data.pairs import Pair
from model_export.data.rollout_reader import Rollout, RolloutReader
from model_export.recipe_stages import RlConfig
from model_export.teacher.reward import reward
from model_export.teacher.step_mask import mask_advantages
from service.contract.tokenizer import ContractTokenizer


@dataclass(frozen=True, slots=True)
class Task:
    """The inputs of the reward and the step mask of a pair's rollouts, except the tokenizer. A row of verl's data holds it as JSON.

    Attributes:
        steps: of a trace under the pair's criteria, in order.
        class_weight: of the pair's gold grade, in the reward.
        end_token_id: ends a complete rollout.
    """

    pair: Pair
    steps: tuple[str, ...]
    class_weight: float
    end_token_id: int
    config: RlConfig

    def to_json(self) -> str:
        """Return JSON that `of_json` reads back unchanged."""
        return _TASK.dump_json(self).decode()

    @staticmethod
    def of_json(text: str) -> "Task":
        """Read a task from JSON. Raises pydantic's ValidationError."""
        return _TASK.validate_json(text)

    def read(self, token_ids: Sequence[int], teacher: str) -> Rollout:
        """Read a rollout with the tokenizer in the teacher's folder."""
        return RolloutReader(_tokenizer(teacher), self.end_token_id).read(token_ids, self.steps)

    def reward(self, rollout: Rollout) -> float:
        """Return the reward that the trainer's own RL gives the rollout."""
        return reward(rollout.trace, self.pair, self.config, self.class_weight)


_TASK = TypeAdapter(Task)


@cache
def _tokenizer(teacher: str) -> ContractTokenizer:
    return ContractTokenizer.load(Path(teacher))


def mask_batch(
    uids: Sequence[str], tasks: Sequence[Task], rollouts: Sequence[Rollout], advantages: Sequence[float]
) -> list[list[float]]:
    """Return the advantage of each token of a batch, with the mask of the tasks' recipe.

    The rollouts of a group share a uid and may lie anywhere in the batch, because verl reorders it to balance lengths.
    """
    groups = defaultdict[str, list[int]](list)
    for row, uid in enumerate(uids):
        groups[uid].append(row)
    found: list[list[float]] = [[] for _ in uids]
    for rows in groups.values():
        task, group = tasks[rows[0]], [rollouts[row] for row in rows]
        plain = [advantages[row] for row in rows]
        if task.config.mask == "none":
            masked = [[value] * len(rollout.spans) for value, rollout in zip(plain, group, strict=True)]
        else:
            masked = mask_advantages(task.pair, group, plain, task.config.mask)
        for row, values in zip(rows, masked, strict=True):
            found[row] = values
    return found
