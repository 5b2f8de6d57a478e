"""Measures the sampling of traces: with packed prompts, as the trainer does, and with padded ones, as is usual.

    .venv/bin/python -m load_tests.packed_prompts --recipe recipes/default.toml --data DATA_FOLDER

In each round both sides sample a batch of the recipe's soft labels from the teacher's untrained base, each trace with the same
number of tokens.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import DynamicCache

from load_tests.arguments import SEED, make_parser
from load_tests.figures import print_sides
from load_tests.raw_results import write_raw
from model_export.data.prepare import prepare_base, read_data
from model_export.data.prompting import PromptForm, Prompting
from model_export.data.sampling import pick_distinct
from model_export.models.model_io import load_model
from model_export.recipe import Recipe
from model_export.recipe_file import load_recipe
from model_export.teacher.rollout import Sampler, Sampling


class Padded(Sampler):
    """A sampler that computes padding and each prompt's criteria again."""

    def _prefill(self, prompts: Sequence[list[int]]) -> DynamicCache:
        width = max(map(len, prompts))
        mask = torch.tensor([[0] * (width - len(row)) + [1] * (len(row) - 1) for row in prompts])
        ids = torch.tensor([[0] * (width - len(row)) + row[:-1] for row in prompts])
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = DynamicCache(config=self._model.config)
        self._model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1)
        return cache


def measure(options: argparse.Namespace, recipe: Recipe, folder: Path) -> None:
    """Print the seconds a batch of both sides, and their ratio within each round."""
    data, config = read_data(recipe, options.data), recipe.label
    prepare_base(recipe.model.teacher, recipe, data, folder)
    prompting = Prompting.load(PromptForm.of(recipe.model, data.criteria, data.teacher_criteria), folder)
    size = config.batch_size
    pairs = pick_distinct(data.train, size * (options.rounds + 1), config.source_exponent, options.seed)
    prompts = [prompting.teacher_prompt(pair) for pair in pairs]
    sampling = Sampling(options.tokens, config.temperature, size)
    model = load_model(folder)
    never = model.config.vocab_size  # no token ends a trace
    sides = {"padded": Padded(model, (), never), "packed": Sampler(model, (), never)}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for start in range(0, len(prompts), size):
        for side, sampler in sides.items():
            started = time.monotonic()
            sampler.sample(prompts[start : start + size], sampling)
            if start:  # the first batch is the warm-up
                seconds[side].append(time.monotonic() - started)
    print_sides(seconds, "s a batch", "padded")
    write_raw(options, {"s_a_batch": seconds})


def main() -> None:
    """Read the command line and measure."""
    parser = make_parser(
        __doc__, recipe=Path("recipes/default.toml"), data=Path("data"), rounds=5, tokens=70, seed=SEED
    )
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        measure(options, load_recipe(options.recipe), Path(folder))


if __name__ == "__main__":
    main()
