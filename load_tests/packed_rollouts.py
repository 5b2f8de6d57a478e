"""Measures an RL step's log-probabilities with their gradient: as TRL computes them, with shared prompts, and packed as well.

    .venv/bin/python -m load_tests.packed_rollouts START --recipe recipes/rl.toml --data DATA_FOLDER

START is the folder that RL starts from, as checkpoints/default. Prompts are of the recipe's training pairs; rollouts are random
tokens, of random lengths from two fifths to nine tenths of `rl.max_tokens`. All sides compute the same loss. Sampling, the reference
model and the optimizer's step are left out.
"""

import argparse
import time
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import torch
from torch.nn.utils.rnn import pad_sequence

from load_tests.arguments import SEED, make_parser
from load_tests.figures import print_sides
from load_tests.raw_results import write_raw
from load_tests.rounds import in_turn
from model_export.data.prepare import read_data
from model_export.data.prompting import PromptForm, Prompting
from model_export.data.sampling import pick_distinct
from model_export.recipe import Recipe
from model_export.recipe_file import load_recipe
from model_export.run_log import RunLog
from model_export.teacher.rl import make_trainer
from model_export.teacher.rl_trainer import RlTrainer
from model_export.training.stage_job import StageJob
from model_export.training.supervised import Reporter

SIDES = ("trl", "shared", "packed")


def make_rows(
    prompts: list[list[int]], recipe: Recipe, random: Random
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return token ids and mask of each prompt's rollouts, (rows, tokens), and the number of tokens after the prompts."""
    longest = recipe.rl.max_tokens
    rows = [prompt for prompt in prompts for _ in range(recipe.rl.rollouts)]
    rollouts = [
        random.choices(prompts[0], k=random.randint(longest * 2 // 5, longest * 9 // 10)) for _ in rows
    ]

    def padded(side: str, parts: list[list[int]], ones: bool) -> torch.Tensor:
        tensors = [torch.ones(len(part), dtype=torch.long) if ones else torch.tensor(part) for part in parts]
        return pad_sequence(tensors, batch_first=True, padding_side=side)

    ids, mask = (
        torch.cat([padded("left", rows, ones), padded("right", rollouts, ones)], dim=1)
        for ones in (False, True)
    )
    return ids, mask, max(map(len, rollouts))


def score(trainer: RlTrainer, side: str, ids: torch.Tensor, mask: torch.Tensor, width: int) -> torch.Tensor:
    """Return the log-probabilities of the last `width` tokens of each row on a side, computed with their entropies."""
    trainer.packs = side == "packed"
    method = (
        super(RlTrainer, trainer)._get_per_token_logps_and_entropies
        if side == "trl"
        else trainer._get_per_token_logps_and_entropies
    )
    log_probs: torch.Tensor = method(
        trainer.model, ids, mask, width, trainer.config.micro_batch, compute_entropy=True
    )[0]
    return log_probs


def measure(options: argparse.Namespace, recipe: Recipe, folder: Path) -> None:
    """Print the seconds a step of all sides, and their ratios to shared prompts within each round."""
    data = read_data(recipe, options.data)
    form = PromptForm.of(recipe.model, data.criteria, data.teacher_criteria)
    prompting = Prompting.load(form, options.start)
    job = StageJob(stage="rl", recipe=recipe, data=options.data, start=options.start, folder=folder)
    count, random = recipe.rl.prompts, Random(options.seed)
    pairs = pick_distinct(data.train, count * (options.rounds + 1), 1.0, options.seed)
    reporter = Reporter(RunLog(folder / "log.jsonl", "rl"), lambda _done, _steps: None)
    trainer, _ = make_trainer(pairs, pairs, prompting, job, reporter, None)
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for start in range(0, len(pairs), count):
        prompts = [prompting.teacher_prompt(pair) for pair in pairs[start : start + count]]
        ids, mask, width = make_rows(prompts, recipe, random)
        losses = {}
        for side in in_turn(SIDES, start // count):
            started = time.monotonic()
            log_probs = score(trainer, side, ids, mask, width)
            loss = (log_probs * mask[:, -width:]).sum() / mask[:, -width:].sum()
            loss.backward()
            trainer.model.zero_grad()
            losses[side] = loss.item()
            if start:  # the first batch is the warm-up
                seconds[side].append(time.monotonic() - started)
        for side in SIDES:
            torch.testing.assert_close(losses[side], losses["trl"], rtol=1e-2, atol=1e-2)  # bfloat16
    print_sides(seconds, "s a step", "shared")
    write_raw(options, {"s_a_step": seconds})


def main() -> None:
    """Read the command line and measure."""
    parser = make_parser(__doc__, recipe=Path("recipes/rl.toml"), data=Path("data"), rounds=4, seed=SEED)
    parser.add_argument("start", metavar="START", type=Path)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        measure(options, load_recipe(options.recipe), Path(folder))


if __name__ == "__main__":
    main()
