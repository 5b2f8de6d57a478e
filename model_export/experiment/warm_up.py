"""Makes the model that all arms start from.

On generated data each seed has its own: a model from scratch, trained until it reaches an accuracy, so that RL has something to
learn. On other data all seeds share one: the SFT teacher of the recipe's run, whose finished stages are kept.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random

from transformers import PreTrainedModel, set_seed

from model_export.data.pairs import Pair
from model_export.data.prepare import Data
from model_export.data.prompting import PromptForm, Prompting
from model_export.data.soft_labels import SOFT_LABELS, SoftLabel, read_soft_labels
from model_export.data.synthetic import UNSEEN
from model_export.experiment.measure import RANDOM, Reading, Ruler, figures_of
from model_export.models.model_io import load_model, load_tokenizer
from model_export.pipeline import Pipeline
from model_export.progress import OnProgress
from model_export.recipe import Recipe
from model_export.recipe_stages import CotConfig
from model_export.run import train_control, warm_up_teachers
from model_export.run_log import LOG_NAME, RunLog
from model_export.stages import RunError, Stages, write_whole
from model_export.teacher.sft import trace_of, traced_example, train_examples
from model_export.training.batches import Example
from model_export.training.stage_job import StageJob
from model_export.training.supervised import Reporter

_READINGS = "readings.json"
# Readings of the dev pairs, by RL step.
Readings = dict[int, list[Reading]]
# Pairs on which the warm-up's accuracy is measured, and steps between two measurements.
_WATCH_PAIRS, _WATCH_STEPS = 240, 10


@dataclass(frozen=True)
class Start:
    """A warmed-up model in a folder, the readings of its traces by RL step, and what the arms train on.

    Attributes:
        evidence: traces of pairs without findings, by id of the pair.
        grade_weight: of a grade in a trace, relative to a word.
    """

    folder: Path
    readings: Readings
    data: Data
    data_folder: Path
    prompting: Prompting
    ruler: Ruler
    evidence: Mapping[str, SoftLabel]
    grade_weight: float

    def example(self, pair: Pair) -> Example | None:
        """Return what supervised training learns of a pair; None where it has no trace."""
        steps = trace_of(pair, self.evidence, self.prompting)
        return None if steps is None else traced_example(pair, steps, self.prompting, self.grade_weight)


def make_start(recipe: Recipe, root: Path, out: Path, on_progress: OnProgress) -> Start:
    """Make the start in the folder `out`, or keep a finished one; on own data the folder may be that of a run.

    Raises RunError for a warm-up that stays below its accuracy.
    """
    stages = Stages(out)
    pipeline = Pipeline(recipe, root, stages, on_progress)
    data, data_folder = replace(pipeline.data, dev=tuple(pipeline.dev_pairs())), pipeline.data_folder
    evidence: Path | None = None
    if recipe.data.synthetic is None:
        teachers = warm_up_teachers(pipeline, train_control(pipeline))
        prompting, evidence, begin = teachers.prompting, teachers.evidence, teachers.last
    else:
        begin = pipeline.base("base", recipe.model.teacher)
        form = PromptForm.of(recipe.model, data.criteria, data.teacher_criteria)
        prompting = Prompting.load(form, begin)
    ruler = Ruler.of(data, prompting, recipe)
    traces = read_soft_labels(evidence / SOFT_LABELS) if evidence else {}
    weight = recipe.cot_sft.grade_weight
    start = Start(begin, {}, data, data_folder, prompting, ruler, traces, weight)

    def work(folder: Path) -> None:
        set_seed(recipe.seed)
        job = StageJob(stage="warm_up", recipe=recipe, data=data_folder, start=begin, folder=folder)
        if recipe.data.synthetic:
            model = _train_to_accuracy(start, job, on_progress)
        else:
            model = load_model(begin)
            model.save_pretrained(folder)
            load_tokenizer(begin).save_pretrained(folder)
        write_readings(folder, {0: ruler.read(model, data.dev)})

    folder = stages.do("warm_up", stage_inputs(recipe, prompting, begin, data_folder), work)
    return replace(start, folder=folder, readings=read_readings(folder))


def stage_inputs(recipe: Recipe, prompting: Prompting, start: Path, data: Path) -> dict[str, object]:
    """Return what a stage of the experiment depends on, for hashing; `start` and `data` are named by their own hashes."""
    return {
        "start": start.name,
        "data": data.name,
        "form": prompting.form.to_json(),
        "cot_sft": recipe.cot_sft.model_dump(exclude={"micro_batch"}),
        "rl": recipe.rl.model_dump(exclude={"save_steps", "micro_batch"}),
        "experiment": recipe.experiment.model_dump(exclude={"seeds", "arms"}),
        "precision": recipe.model.precision,
        "dev_pairs": recipe.evaluate.max_pairs,
        "seed": recipe.seed,
    }


def _train_to_accuracy(start: Start, job: StageJob, on_progress: OnProgress) -> PreTrainedModel:
    recipe = job.recipe
    seen = [pair for pair in start.data.dev if pair.source not in UNSEEN]
    watched = Random(recipe.seed).sample(seen, min(_WATCH_PAIRS, len(seen)))
    target, log, accuracy = recipe.experiment.warm_up_accuracy, RunLog(job.folder / LOG_NAME, job.stage), 0.0

    def has_reached(model: PreTrainedModel, step: int) -> bool:
        nonlocal accuracy
        if step % _WATCH_STEPS == 0:
            accuracy = figures_of(start.ruler.read(model, watched))[RANDOM]["accuracy"]
            log.write(step, {"dev_accuracy": accuracy})
        return accuracy >= target

    def on_step(step: int, steps: int) -> None:
        on_progress(f"Seed {recipe.seed}: warm_up", step, steps)

    model = train_supervised(start, job, recipe.cot_sft, Reporter(log, on_step, has_reached))
    if accuracy < target:
        raise RunError(f"the warm-up's dev accuracy stays below {target:.0%}: raise cot_sft.steps")
    return model


def train_supervised(start: Start, job: StageJob, config: CotConfig, report: Reporter) -> PreTrainedModel:
    """Train the model of the job's start on traces, and write it to the job's folder."""
    examples = [example for pair in start.data.train if (example := start.example(pair))]
    return train_examples(examples, start.prompting, config, job, report)


def write_readings(folder: Path, readings: Readings) -> None:
    """Write readings by RL step; a kill leaves no incomplete file."""
    rows = {step: [asdict(reading) for reading in found] for step, found in readings.items()}
    write_whole(folder / _READINGS, json.dumps(rows))


def read_readings(folder: Path) -> Readings:
    """Read readings by RL step; none where none were written."""
    file = folder / _READINGS
    rows = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {
        int(step): [Reading(**{**row, "splits": tuple(row["splits"])}) for row in found]
        for step, found in rows.items()
    }
