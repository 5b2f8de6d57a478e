"""Runs the arms of all seeds from shared warm-ups. A rerun keeps what is finished; a killed arm starts again."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random

from datasets import Dataset
from transformers import PreTrainedModel, PrinterCallback, set_seed

from model_export.data.gold_traces import gold_steps
from model_export.data.pairs import Pair
from model_export.data.prompting import PromptForm, Prompting
from model_export.data.synthetic import UNSEEN
from model_export.experiment.arms import ARMS, CREDITS, SFT
from model_export.experiment.measure import RANDOM, Figures, Ruler
from model_export.models.model_io import load_model, load_tokenizer
from model_export.pipeline import Pipeline
from model_export.progress import OnProgress
from model_export.recipe import CotConfig, Recipe
from model_export.run_log import LOG_NAME, RunLog
from model_export.stages import RunError, Stages, lock
from model_export.teacher.rl_trainer import RlTrainer, grpo_arguments
from model_export.training.batches import Example
from model_export.training.processes import save_trained
from model_export.training.stage_job import OnStep, StageJob
from model_export.training.supervised import Reporter, StageSettings, train

# A rollout's tokens cost one forward pass when sampled, beside the forward and backward pass that an SFT token costs too.
SFT_STEPS_PER_RL_STEP = 4 / 3
_MEASURES = "measures.json"
# The warm-up's accuracy is watched on so many pairs and every so many steps: it rises within few.
_WATCH_PAIRS, _WATCH_STEPS = 240, 10


class Seed:
    """The warm-up and the arms of one seed, each in a folder named by a hash of its inputs."""

    def __init__(self, recipe: Recipe, out: Path, on_progress: OnProgress) -> None:
        """`out` is this seed's folder."""
        self._recipe = recipe
        self._on_progress = on_progress
        self._stages = Stages(out)
        pipeline = Pipeline(recipe, Path(), self._stages, on_progress)
        self._data, self._data_folder = pipeline.data, self._stages.folders[-1]
        self._base = pipeline.base("base", recipe.model.teacher)
        form = PromptForm.of(recipe.model, self._data.criteria)
        self._prompting = Prompting.load(form, self._base)
        self._ruler = Ruler.of(self._data, self._prompting, recipe)

    def run(self) -> dict[str, dict[int, Figures]]:
        """Return the figures of each arm by RL step, from 0 for the warm-up."""
        warm_up = self._do("warm_up", self._base, self._warm_up)
        start = _read(warm_up)
        return {arm: start | _read(self._do(f"arm_{arm}", warm_up, partial(self._arm, arm))) for arm in ARMS}

    def _do(self, stage: str, start: Path, work: Callable[[StageJob, OnStep], None]) -> Path:
        recipe = self._recipe
        inputs = {
            "start": start.name,
            "form": self._prompting.form.to_json(),
            "cot_sft": recipe.cot_sft.model_dump(),
            "rl": recipe.rl.model_dump(),
            "experiment": recipe.experiment.model_dump(exclude={"seeds"}),
            "seed": recipe.seed,
        }

        def train_in(folder: Path) -> None:
            set_seed(recipe.seed)
            job = StageJob(stage=stage, recipe=recipe, data=self._data_folder, start=start, folder=folder)
            work(job, partial(self._on_progress, f"Seed {recipe.seed}: {stage}"))

        return self._stages.do(stage, inputs, train_in)

    def _warm_up(self, job: StageJob, on_step: OnStep) -> None:
        config, seen = self._recipe.cot_sft, [pair for pair in self._data.dev if pair.source not in UNSEEN]
        watched = Random(self._recipe.seed).sample(seen, min(_WATCH_PAIRS, len(seen)))
        target = self._recipe.experiment.warm_up_accuracy
        log, accuracy = _log(job), 0.0

        def has_reached(model: PreTrainedModel, step: int) -> bool:
            nonlocal accuracy
            if step % _WATCH_STEPS == 0:
                accuracy = self._ruler.measure(model, watched)[RANDOM]["accuracy"]
                log.write(step, {"dev_accuracy": accuracy})
            return accuracy >= target

        model = self._train(job, config, Reporter(log, on_step, has_reached))
        if accuracy < target:
            raise RunError(f"the warm-up's dev accuracy stays below {target:.0%}: raise cot_sft.steps")
        _write(job.folder, {0: self._ruler.measure(model, self._data.dev)})

    def _arm(self, arm: str, job: StageJob, on_step: OnStep) -> None:
        scale = SFT_STEPS_PER_RL_STEP if arm == SFT else 1.0
        at = {round(step * scale): step for step in self._recipe.experiment.measure_at}
        measured: dict[int, Figures] = {}

        def measure(model: PreTrainedModel, step: int) -> bool:
            if step in at:
                measured[at[step]] = self._ruler.measure(model, self._data.dev)
            return False

        report = Reporter(_log(job), on_step, measure)
        if arm == SFT:
            rl = self._recipe.rl
            config = self._recipe.cot_sft.model_copy(
                update={
                    "steps": max(at),
                    "batch_size": rl.prompts * rl.rollouts,
                    "learning_rate": rl.learning_rate,
                    "schedule": "constant",
                }
            )
            self._train(job, config, report)
        else:
            self._reinforce(arm, job, report)
        _write(job.folder, measured)

    def _train(self, job: StageJob, config: CotConfig, report: Reporter) -> PreTrainedModel:
        model, tokenizer = load_model(job.start), load_tokenizer(job.start)
        examples = [self._example(pair) for pair in self._data.train]
        settings = StageSettings(config, self._recipe.seed, job.folder, self._prompting.label_token_ids)
        trainer = train(model, tokenizer, examples, settings, report)
        save_trained(trainer, tokenizer, job.folder)
        return model

    def _example(self, pair: Pair) -> Example:
        steps = gold_steps(pair, self._prompting.steps(pair.criteria))
        completion = self._prompting.teacher_completion(steps, pair.label)
        return Example(self._prompting.teacher_prompt(pair), completion, None, pair.label)

    def _reinforce(self, arm: str, job: StageJob, report: Reporter) -> None:
        model, tokenizer = load_model(job.start), load_tokenizer(job.start)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        longest = max(len(self._prompting.teacher_prompt(pair)) for pair in self._data.train)
        trainer = RlTrainer(
            model=model,
            args=grpo_arguments(job, longest),
            train_dataset=Dataset.from_list([{"prompt": pair.id} for pair in self._data.train]),
            processing_class=tokenizer,
            callbacks=[report],
            pairs={pair.id: pair for pair in self._data.train},
            prompting=self._prompting,
            config=self._recipe.rl,
            credit=CREDITS[arm],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        save_trained(trainer, tokenizer, job.folder)


def _log(job: StageJob) -> RunLog:
    return RunLog(job.folder / LOG_NAME, job.stage)


def _write(folder: Path, measured: Mapping[int, Figures]) -> None:
    (folder / _MEASURES).write_text(json.dumps(measured), encoding="utf-8")


def _read(folder: Path) -> dict[int, Figures]:
    found = json.loads((folder / _MEASURES).read_text(encoding="utf-8"))
    return {int(step): figures for step, figures in found.items()}


def run_seeds(
    recipe: Recipe, out: Path, seeds: Sequence[int], on_progress: OnProgress
) -> dict[int, dict[str, dict[int, Figures]]]:
    """Run the experiment for these seeds, or keep what is finished of them; return the figures by seed, arm and RL step.

    Raises RunError when another process works on a seed, or when a warm-up does not reach its accuracy.
    """
    found = {}
    # Every arm takes the same steps: none keeps its best ones.
    rl = recipe.rl.model_copy(update={"dev_pairs": 0, "steps": max(recipe.experiment.measure_at)})
    for seed in seeds:
        folder = out / f"seed-{seed}"
        with lock(folder):
            of_seed = recipe.model_copy(update={"seed": seed, "rl": rl})
            found[seed] = Seed(of_seed, folder, on_progress).run()
    return found
