"""Measures training steps on the label-only control's batches: packed, as the trainer does, and padded, as is usual.

    .venv/bin/python -m load_tests.packed_batches --recipe recipes/default.toml --data DATA_FOLDER

Each round is one batch of the recipe, in which both sides compute the same loss. Neither is compiled, and all layers are computed.
The optimizer's step is left out.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from load_tests.arguments import SEED, make_parser
from load_tests.figures import print_sides
from load_tests.raw_results import write_raw
from load_tests.rounds import in_turn
from model_export.data.prepare import prepare_base, read_data
from model_export.data.prompting import PromptForm, Prompting
from model_export.data.sampling import pick
from model_export.models.model_io import load_model, speed_up
from model_export.models.packing import pack_prompts
from model_export.recipe import Recipe
from model_export.recipe_file import load_recipe
from model_export.training.batches import plan_order
from model_export.training.learned_weights import freeze_all_but_linears

Rows = Sequence[Sequence[int]]


def packed(model: PreTrainedModel, rows: Rows) -> torch.Tensor:
    """Return the logits of the token after each row, (rows, vocabulary)."""
    logits: torch.Tensor = model(**pack_prompts(rows, model.config), use_cache=False).logits[0]
    return logits


def padded(model: PreTrainedModel, rows: Rows) -> torch.Tensor:
    """Return the same from rows padded on the right."""
    ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    ends = torch.tensor([len(row) - 1 for row in rows])
    last = model.model(ids, use_cache=False).last_hidden_state[torch.arange(len(rows)), ends]
    logits: torch.Tensor = model.lm_head(last)
    return logits


def step(side: Callable[[PreTrainedModel, Rows], torch.Tensor], model: PreTrainedModel, rows: Rows) -> float:
    """Compute the gradient of the mean log-probability of the most probable next token, and return that."""
    loss = -side(model, rows).log_softmax(-1).amax(-1).mean()
    loss.backward()
    model.zero_grad()
    found: float = loss.item()
    return found


def measure(options: argparse.Namespace, recipe: Recipe, folder: Path) -> None:
    """Print the seconds a step of both sides, and their ratio within each round."""
    data = read_data(recipe, options.data)
    prepare_base(recipe.model.student_base, recipe, data, folder)
    prompting = Prompting.load(PromptForm.of(recipe.model, data.criteria), folder)
    config = recipe.label_only_sft
    prompts = [prompting.student_prompt(pair) for pair in pick(data.train, config, recipe.seed)]
    order = plan_order(list(map(len, prompts)), config.batch_size, options.rounds + 1, options.seed)
    model = load_model(folder)
    speed_up(model, compiled=False)
    freeze_all_but_linears(model, config.frozen_layers)
    seconds: dict[str, list[float]] = {"padded": [], "packed": []}
    for start in range(0, len(order), config.batch_size):
        rows = [prompts[number] for number in order[start : start + config.batch_size]]
        losses = []
        for side in in_turn((padded, packed), start // config.batch_size):
            started = time.monotonic()
            losses.append(step(side, model, rows))
            if start:  # the first batch is the warm-up
                seconds[side.__name__].append(time.monotonic() - started)
        torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)
    print_sides(seconds, "s a step", "padded")
    write_raw(options, {"s_a_step": seconds})


def main() -> None:
    """Read the command line and measure."""
    parser = make_parser(
        __doc__, recipe=Path("recipes/default.toml"), data=Path("data"), rounds=12, seed=SEED
    )
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        measure(options, load_recipe(options.recipe), Path(folder))


if __name__ == "__main__":
    main()
