"""Runs the arms of all seeds from their warm-ups. A rerun keeps what is finished; a killed arm resumes from its saved state."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel, set_seed

from model_export.experiment.arms import CREDITS, SFT
from model_export.experiment.warm_up import (
    Readings,
    Start,
    make_start,
    read_readings,
    stage_inputs,
    train_supervised,
    write_readings,
)
from model_export.progress import OnProgress
from model_export.recipe import Recipe
from model_export.stages import RunError, Stages, lock
from model_export.teacher.rl import make_trainer
from model_export.training.processes import save_trained
from model_export.training.stage_job import OnStep, StageJob
from model_export.training.supervised import Reporter, saved_state


def run_seeds(
    recipe: Recipe, root: Path, out: Path, seeds: Sequence[int], on_progress: OnProgress
) -> dict[int, dict[str, Readings]]:
    """Run the experiment for these seeds, or keep what is finished of them; return the readings by seed, arm and RL step.

    Raises RunError for a recipe without a warm-up, when another process works on a seed, or when a warm-up does not reach its
    accuracy.
    """
    if not recipe.cot_sft.steps:
        raise RunError(
            "the arms of an experiment start from a warm-up: set cot_sft.steps and label.teacher = 'rl'"
        )
    # Every arm takes the same steps: none keeps its best ones.
    rl = recipe.rl.model_copy(update={"dev_pairs": 0, "steps": max(recipe.experiment.measure_at)})
    recipe = recipe.model_copy(update={"rl": rl})
    shared: Start | None = None
    if recipe.data.synthetic is None:
        with lock(out):
            shared = make_start(recipe, root, out, on_progress)
    found = {}
    for seed in seeds:
        folder, of_seed = out / f"seed-{seed}", recipe.model_copy(update={"seed": seed})
        with lock(folder):
            start = shared or make_start(of_seed, root, folder, on_progress)
            found[seed] = _run_arms(of_seed, start, folder, on_progress)
    return found


def _run_arms(recipe: Recipe, start: Start, out: Path, on_progress: OnProgress) -> dict[str, Readings]:
    """Return the readings of each arm by RL step, from 0 for the warm-up."""
    stages = Stages(out)

    def run(arm: str, folder: Path) -> None:
        set_seed(recipe.seed)
        stage = f"arm_{arm}"
        job = StageJob(stage=stage, recipe=recipe, data=start.data_folder, start=start.folder, folder=folder)
        _run_arm(arm, start, job, partial(on_progress, f"Seed {recipe.seed}: {stage}"))

    inputs = stage_inputs(recipe, start.prompting, start.folder, start.data_folder)
    return {
        arm: start.readings | read_readings(stages.do(f"arm_{arm}", inputs, partial(run, arm)))
        for arm in recipe.experiment.arms
    }


def _run_arm(arm: str, start: Start, job: StageJob, on_step: OnStep) -> None:
    recipe = job.recipe
    scale = recipe.experiment.sft_steps_per_rl_step if arm == SFT else 1.0
    at = {round(step * scale): step for step in recipe.experiment.measure_at}
    readings = read_readings(job.folder)  # of an attempt that was killed

    def measure(model: PreTrainedModel, step: int) -> bool:
        if step in at:
            readings[at[step]] = start.ruler.read(model, start.data.dev)
            write_readings(job.folder, readings)
        return False

    report = Reporter.of(job, on_step, measure)
    if arm == SFT:
        config = recipe.cot_sft.model_copy(
            update={
                "steps": max(at),
                "batch_size": recipe.rl.prompts * recipe.rl.rollouts,
                "learning_rate": recipe.rl.learning_rate,
                "schedule": "constant",
            }
        )
        train_supervised(start, job, config, report)
    else:
        trainer, tokenizer = make_trainer(start.data.train, [], start.prompting, job, report, CREDITS[arm])
        trainer.train(resume_from_checkpoint=saved_state(job.folder / "state"))
        save_trained(trainer, tokenizer, job.folder)
