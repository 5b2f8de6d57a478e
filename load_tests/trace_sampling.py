"""Measures the sampling of traces: as the trainer does it, and by transformers' `generate` with padded prompts.

    .venv/bin/python -m load_tests.trace_sampling TEACHER --recipe recipes/default.toml --data DATA_FOLDER

TEACHER is the folder of a stage that learned traces, as runs/default/cot_sft-8a34aea9ad41. In each round both sides sample a
batch of the recipe's soft labels.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from load_tests.arguments import SEED, make_parser
from load_tests.figures import print_sides
from load_tests.raw_results import write_raw
from load_tests.rounds import in_turn
from model_export.data.prepare import read_data
from model_export.data.prompting import PromptForm, Prompting
from model_export.data.sampling import pick_distinct
from model_export.models.model_io import load_model
from model_export.recipe import Recipe
from model_export.recipe_file import load_recipe
from model_export.teacher.rollout import Sampler, Sampling


class Generate(Sampler):
    """A sampler by transformers' `generate`, which computes padding and each prompt's criteria again."""

    def _complete(self, prompts: Sequence[list[int]], sampling: Sampling, _: object) -> list[list[int]]:
        width = max(map(len, prompts))
        found = self._model.generate(
            torch.tensor([[self._end] * (width - len(row)) + row for row in prompts]),
            attention_mask=torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts]),
            do_sample=sampling.temperature > 0,
            temperature=sampling.temperature or None,
            top_k=0,
            max_new_tokens=sampling.max_tokens,
            eos_token_id=self._end,
            pad_token_id=self._end,
        )
        written = found[:, width:].tolist()
        return [row[: row.index(self._end) + 1] if self._end in row else row for row in written]


def measure(options: argparse.Namespace, recipe: Recipe) -> None:
    """Print the seconds a batch of both sides, and their ratio within each round."""
    data, config = read_data(recipe, options.data), recipe.label
    prompting = Prompting.load(
        PromptForm.of(recipe.model, data.criteria, data.teacher_criteria), options.teacher
    )
    size = config.batch_size
    pairs = pick_distinct(data.train, size * (options.rounds + 1), config.source_exponent, options.seed)
    prompts = [prompting.teacher_prompt(pair) for pair in pairs]
    sampling = Sampling(recipe.rl.max_tokens, config.temperature, size)
    model = load_model(options.teacher)
    sides = {
        name: side(model, (), prompting.end_token_id)
        for name, side in {"generate": Generate, "sampler": Sampler}.items()
    }
    torch.manual_seed(options.seed)
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for start in range(0, len(prompts), size):
        for side, sampler in in_turn(sides.items(), start // size):
            started = time.monotonic()
            sampler.sample(prompts[start : start + size], sampling)
            if start:  # the first batch is the warm-up
                seconds[side].append(time.monotonic() - started)
    print_sides(seconds, "s a batch", "generate")
    write_raw(options, {"s_a_batch": seconds})


def main() -> None:
    """Read the command line and measure."""
    parser = make_parser(__doc__, recipe=Path("recipes/default.toml"), data=Path("data"), rounds=5, seed=SEED)
    parser.add_argument("teacher", metavar="TEACHER", type=Path)
    options = parser.parse_args()
    measure(options, load_recipe(options.recipe))


if __name__ == "__main__":
    main()
