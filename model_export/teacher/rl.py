"""Reinforcement learning of the teacher: TRL's GRPO, with or without the step mask.

Left out of GRPO as first published (arXiv 2402.03300): the KL term, unless `beta` is set, and several updates per
rollout, unless `iterations` is set. Added: the step mask, new prompts for groups whose rollouts all earn the same (DAPO's
dynamic sampling, arXiv 2503.14476), an end when rollouts stop parsing, and the choice of the best weights by dev reward.
"""

import json
import logging
import math
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState

from model_export.data.pairs import Pair
from model_export.data.prompting import Prompting
from model_export.data.sampling import sample_dev
from model_export.models.model_io import load_model, load_tokenizer
from model_export.teacher.rl_trainer import PARSE_WINDOW, Credit, RlTrainer, grpo_arguments
from model_export.teacher.step_mask import mask_advantages
from model_export.training.learned_weights import freeze_all_but_linears
from model_export.training.processes import save_trained, write_weights
from model_export.training.stage_job import OnStep, StageJob
from model_export.training.supervised import Reporter, TrainingError, saved_state

_logger = logging.getLogger(__name__)
_REWARD = "reward.json"


class ParseGuard(TrainerCallback):  # type: ignore[misc]  # mypy does not read transformers
    """Stops training when too few rollouts parse: those that don't earn nothing, so the policy could only get worse."""

    def __init__(self, parse_rates: Sequence[float], least: float) -> None:
        self._rates = parse_rates
        self._least = least
        self.message: str | None = None

    def on_step_end(
        self, _args: Any, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        rate = sum(self._rates) / PARSE_WINDOW
        if len(self._rates) == PARSE_WINDOW and rate < self._least:
            self.message = (
                f"RL stopped at step {state.global_step}: {rate:.0%} of the rollouts of the last {PARSE_WINDOW} batches "
                f"parse, below rl.min_parse_rate = {self._least:.0%}; lower rl.learning_rate"
            )
            control.should_training_stop = True
        return control


class BestWeights(TrainerCallback):  # type: ignore[misc]  # mypy does not read transformers
    """Keeps the weights with the highest dev reward in a folder of their own; of the start, only the reward.

    A saved state of a large teacher holds Adam's moments too, three times as much, so states can be rarer than measurements.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.trainer: RlTrainer | None = None
        best = self._newest()
        self._reward = json.loads((best / _REWARD).read_text(encoding="utf-8")) if best else -math.inf

    def on_evaluate(self, _args: Any, state: TrainerState, _control: Any, **_: Any) -> None:
        reward = next(row["eval_reward"] for row in reversed(state.log_history) if "eval_reward" in row)
        before, partial = self._newest(), self._folder / f"best-{state.global_step}.partial"
        measured_again = before is not None and before.name == partial.stem  # after a resume
        if reward <= self._reward or measured_again:
            return
        self._reward = reward
        if state.global_step:
            write_weights(self.trainer, partial)
        if state.is_world_process_zero:
            partial.mkdir(exist_ok=True)
            (partial / _REWARD).write_text(json.dumps(reward), encoding="utf-8")
            partial.rename(partial.with_suffix(""))
            if before:
                shutil.rmtree(before)

    def take(self) -> bool:
        """Copy the best weights to the stage's folder; return False where they are the start's. A kill loses nothing."""
        best = self._newest()
        if best is None:
            return False
        files = [path for path in best.iterdir() if path.name != _REWARD]
        for path in files:
            shutil.copyfile(path, self._folder / path.name)
        for left in self._folder.glob("best-*"):
            shutil.rmtree(left)
        return bool(files)

    def _newest(self) -> Path | None:
        """Return the folder of the newest step that is whole."""
        found = (path.parent for path in self._folder.glob(f"best-*/{_REWARD}") if not path.parent.suffix)
        return max(found, key=lambda path: int(path.name.removeprefix("best-")), default=None)


def train_rl(
    pairs: Sequence[Pair], dev: Sequence[Pair], prompting: Prompting, job: StageJob, on_step: OnStep
) -> None:
    """Train the SFT teacher on the reward of its rollouts, and write the weights with the best dev reward to the folder.

    Where no step improves the dev reward, these are the SFT teacher's. Raises TrainingError when RL breaks down without dev pairs.
    """
    config = job.recipe.rl
    measured = sample_dev(dev, config.dev_pairs, Random(job.recipe.seed)) if config.dev_pairs else []
    credit = None if config.mask == "none" else partial(mask_advantages, rule=config.mask)
    report = Reporter.of(job, on_step)
    best = BestWeights(job.folder)
    trainer, tokenizer = make_trainer(pairs, measured, prompting, job, report, credit)
    if measured:
        best.trainer = trainer
        trainer.add_callback(best)
    guard = ParseGuard(trainer.parse_rates, config.min_parse_rate)
    trainer.add_callback(guard)
    trainer.train(resume_from_checkpoint=saved_state(job.folder / "state"))
    if guard.message and not measured:
        raise TrainingError(guard.message)
    if guard.message:
        _logger.warning("%s; the weights with the best dev reward are kept", guard.message)
    save_trained(trainer, tokenizer, job.folder)
    if measured and trainer.is_world_process_zero() and not best.take():
        _logger.warning(
            "RL improves the reward of the dev pairs at no step: the SFT teacher's weights are kept"
        )
        load_model(job.start).save_pretrained(job.folder)


def make_trainer(
    pairs: Sequence[Pair],
    measured: Sequence[Pair],
    prompting: Prompting,
    job: StageJob,
    report: Reporter,
    credit: Credit | None,
) -> tuple[RlTrainer, Any]:
    """Return a trainer of the job's start on these pairs, which evaluates on `measured` if there are any, and the tokenizer."""
    model, tokenizer = load_model(job.start), load_tokenizer(job.start)
    if not job.from_scratch:
        freeze_all_but_linears(model, job.recipe.rl.frozen_layers)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    by_id = {pair.id: pair for pair in (*pairs, *measured)}
    trainer = RlTrainer(
        model=model,
        args=grpo_arguments(
            job,
            max(len(prompting.teacher_prompt(pair)) for pair in by_id.values()),
            prompting.end_token_id,
        ),
        train_dataset=_rows(pairs),
        eval_dataset=_rows(measured) if measured else None,
        processing_class=tokenizer,
        callbacks=[report],
        pairs=by_id,
        prompting=prompting,
        config=job.recipe.rl,
        credit=credit,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer, tokenizer


def _rows(pairs: Sequence[Pair]) -> Dataset:
    return Dataset.from_list([{"prompt": pair.id} for pair in pairs])
