"""Pairs as rows that verl reads, and the reward and the step mask of verl's rollouts. verl_rl.py is the side that imports verl."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from datasets import Dataset
from pydantic import TypeAdapter

from model_export.data.pairs import Pair
from model_export.data.prepare import read_data
from model_export.data.prompting import PromptForm, Prompting
from model_export.data.rollout_reader import Rollout, RolloutReader
from model_export.data.sampling import sample_dev
from model_export.recipe import Recipe, RlConfig
from model_export.teacher.reward import class_weights, reward
from model_export.teacher.step_mask import mask_advantages
from service.contract.tokenizer import ContractTokenizer


@dataclass(frozen=True, slots=True)
class Task:
    """What the reward and the step mask of a pair's rollouts depend on, besides the tokenizer. A row carries it as JSON.

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


def export_rows(recipe: Recipe, root: Path, teacher: Path, out: Path) -> str:
    """Write `train.parquet` and `dev.parquet` for verl, from the recipe's pairs under `root`; return a summary.

    `teacher` is the folder of the SFT teacher, whose tokenizer renders the prompts. Dev pairs are those that the trainer's own
    RL measures on. Raises DataError and PromptingError.
    """
    data = read_data(recipe, root)
    prompting = Prompting.load(PromptForm.of(recipe.model, data.criteria, data.teacher_criteria), teacher)
    prompting.check_queries(data.train)
    config, weights = recipe.rl, class_weights(data.train, recipe.rl)
    dev = sample_dev(data.dev, config.dev_pairs or None, Random(recipe.seed))
    out.mkdir(parents=True, exist_ok=True)
    longest = 0
    for name, pairs in (("train", data.train), ("dev", dev)):
        rows = make_rows(pairs, prompting, config, weights)
        Dataset.from_list(rows).to_parquet(out / f"{name}.parquet")
        longest = max(longest, *(len(row["prompt"]) for row in rows))
    return (
        f"{out}: {len(data.train):,} training and {len(dev):,} dev pairs; the longest prompt has {longest:,} tokens, "
        "which data.max_prompt_length must hold"
    )


def make_rows(
    pairs: Sequence[Pair], prompting: Prompting, config: RlConfig, weights: Mapping[int, float]
) -> list[dict[str, Any]]:
    """Return a row of verl's data for each pair. Prompts are token ids, as the trainer's own RL sends them.

    `weights` are the class weights of gold grades, 1 where a grade has none.
    """
    tasks = (
        Task(
            pair,
            prompting.steps(pair.criteria),
            weights.get(pair.label, 1.0),
            prompting.end_token_id,
            config,
        )
        for pair in pairs
    )
    return [
        {
            "data_source": task.pair.source,
            "prompt": prompting.teacher_prompt(task.pair),
            "reward_model": {"ground_truth": task.pair.label},
            "extra_info": {"index": index, "task": task.to_json()},
        }
        for index, task in enumerate(tasks)
    ]


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
