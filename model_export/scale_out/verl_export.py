"""Writes a recipe's pairs as verl's data."""

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from datasets import Dataset

from model_export.data.pairs import Pair
from model_export.data.prepare import read_data
from model_export.data.prompting import PromptForm, Prompting
from model_export.data.sampling import sample_dev
from model_export.recipe import Recipe
from model_export.recipe_stages import RlConfig
from model_export.scale_out.verl_rows import Task
from model_export.teacher.reward import ClassWeights


def export_rows(recipe: Recipe, root: Path, teacher: Path, out: Path) -> str:
    """Write `train.parquet` and `dev.parquet` for verl, from the recipe's pairs under `root`; return a summary.

    `teacher` is the folder of the SFT teacher, whose tokenizer renders the prompts. Dev pairs are those that the trainer's own
    RL measures on. Raises DataError and PromptingError.
    """
    data = read_data(recipe, root)
    prompting = Prompting.load(PromptForm.of(recipe.model, data.criteria, data.teacher_criteria), teacher)
    prompting.check_queries(data.train)
    config, weights = recipe.rl, ClassWeights(data.train, recipe.rl)
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
    pairs: Sequence[Pair], prompting: Prompting, config: RlConfig, weights: ClassWeights
) -> list[dict[str, Any]]:
    """Return a row of verl's data for each pair. Prompts are token ids, as the trainer's own RL sends them."""
    tasks = (
        Task(
            pair,
            prompting.steps(pair.criteria),
            weights.of(pair),
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
