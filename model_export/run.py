"""The run of a recipe, top to bottom: from data to a checkpoint, a table and a report."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from model_export.checkpoint.writer import check_probes
from model_export.data.pairs import GRADES, Pair
from model_export.data.prompting import PromptForm, Prompting
from model_export.encoding import compare_readings, encode, second_reading
from model_export.evaluation.baselines import bm25, majority
from model_export.evaluation.evaluate import Evaluation, Predictions, evaluate
from model_export.evaluation.fitted import fit
from model_export.labelling import find_labels, own_traces, soft_labels
from model_export.measuring import explain, predict, predict_by_cosine, predict_by_cross_encoder
from model_export.outputs import CHECKPOINT, Models, write_checkpoint, write_results_and_report
from model_export.pipeline import Pipeline
from model_export.progress import OnProgress
from model_export.recipe import Recipe
from model_export.reports.report import RunResult
from model_export.run_log import LOG_NAME, read_log
from model_export.scale_out.rollout_server import check_rollouts
from model_export.stacking import Stacked
from model_export.stages import RunError, Stages, lock
from model_export.teachers.endpoint import read_key


@dataclass(frozen=True, slots=True)
class Control:
    """The label-only control in its folder, and the base and the prompts that it shares with the student."""

    form: PromptForm
    prompting: Prompting
    base: Path
    folder: Path


@dataclass(frozen=True, slots=True)
class Teachers:
    """The generative teachers' folders by name, their base and prompts, and the evidence that they learned from, if any."""

    models: Mapping[str, Path]
    base: Path
    prompting: Prompting
    evidence: Path | None

    @property
    def last(self) -> Path:
        """Return the folder of the teacher that was trained last."""
        return [*self.models.values()][-1]


@dataclass(frozen=True, slots=True)
class Student:
    """The student to serve in its folder, the teacher of its traces, the stack of its grades, if any, and all teachers.

    `text_student` is the folder that `encode` started from, or would have.
    """

    folder: Path
    text_student: Path
    teacher: Path
    teachers: Teachers
    stacked: Stacked | None


def run(
    recipe: Recipe,
    recipe_text: str,
    root: Path,
    out: Path,
    on_progress: OnProgress,
    *,
    control_only: bool = False,
) -> Evaluation:
    """Run the recipe on the data under `root`; keep the stages that an earlier run in the folder `out` has finished.

        data > bases > label-only control, cross-encoder
                     > SFT teacher > RL > soft labels > student > encoder of note vectors

    Without RL (`rl.steps = 0`) the SFT teacher writes the soft labels, or the control does, and then there is no SFT teacher. With a stack of teachers their distributions are the
    stack's, and the traces stay.

    Writes `checkpoint/`, `report.html` and `results.json` into `out`. With `control_only` it trains the label-only control
    alone and writes no checkpoint.
    Raises NotegradeError for what a user can correct: bad data, an SFT teacher whose traces don't parse, a failed gate.
    """
    if not control_only:
        check_rollouts(recipe)
        find_labels(recipe, root)
        if "endpoint" in recipe.stack.teachers:
            read_key(recipe.stack.endpoint)
    with lock(out):
        _remove_interrupted_exports(out)
        stages = Stages(out)
        pipeline = Pipeline(recipe, root, stages, on_progress)
        data = pipeline.data
        if not control_only:
            pipeline.check_criteria()

        control = train_control(pipeline)
        cross_encoder = pipeline.cross_encoder() if recipe.cross_encoder.steps and not control_only else None
        pairs = pipeline.dev_pairs()
        controls = _predict_controls(pipeline, pairs, cross_encoder)
        systems = [
            *controls,
            predict(pipeline, "zero_shot", pairs, control.prompting, control.base),
            predict(pipeline, "label_only_sft", pairs, control.prompting, control.folder),
        ]

        def measure() -> RunResult:
            found = evaluate(systems, pairs, data.long_tail, seed=recipe.seed, draws=recipe.evaluate.draws)
            log = [row for folder in stages.folders for row in read_log(folder / LOG_NAME)]
            return RunResult(recipe, recipe_text, data, pairs, systems, found, stages.records, log)

        if control_only:
            result = measure()
            write_results_and_report(result, out)
            return result.evaluation

        student = train_student(pipeline, control)
        for name, each in student.teachers.models.items():
            systems.append(predict(pipeline, name, pairs, student.teachers.prompting, each, reasons=True))
        if student.stacked:
            systems.append(student.stacked.predictions)
        on_pairs = predict(pipeline, "student", pairs, control.prompting, student.folder)
        systems.append(on_pairs)
        on_dev = [*controls, on_pairs]
        if len(pairs) < len(data.dev):
            on_all = predict(pipeline, "student", data.dev, control.prompting, student.folder)
            on_dev = [*_predict_controls(pipeline, data.dev, cross_encoder), on_all]
        fitted = fit(on_dev[-1].probabilities, data.dev, recipe.seed)
        explained = explain(pipeline, control.prompting, student.folder, fitted)
        compared = student.stacked.teachers if student.stacked else None
        vectors = compare_readings(
            pipeline, pairs, control.prompting, student.folder, student.text_student, on_pairs
        )
        result = replace(measure(), explained=explained, teachers=compared, vectors=vectors)
        write_results_and_report(result, out)
        models = Models(student.folder, control.base, student.teacher, student.teachers.base)
        second = second_reading(pipeline, control.prompting, student.folder, vectors, on_pairs.system)
        write_checkpoint(result, control.form, models, on_dev, fitted, second, out, on_progress)
        return result.evaluation


def train_control(pipeline: Pipeline) -> Control:
    """Write the student's base, and train the label-only control from it."""
    data, recipe = pipeline.data, pipeline.recipe
    base = pipeline.base("student_base", recipe.model.student_base)
    form = PromptForm.of(recipe.model, data.criteria, data.teacher_criteria)
    prompting = Prompting.load(form, base)
    check_probes(form, prompting.tokenizer)
    prompting.check_queries([*data.train, *data.dev])
    return Control(form, prompting, base, pipeline.train("label_only_sft", prompting, base))


def train_student(pipeline: Pipeline, control: Control) -> Student:
    """Train the teachers, let them label, and train the student."""
    recipe = pipeline.recipe
    if recipe.label.teacher == "label_only_sft":
        labels = pipeline.evidence(control.prompting, control.folder)
        if labels is None:
            raise RunError(
                "label.teacher = 'label_only_sft' needs pairs without findings, for evidence; use 'cot_sft'"
            )
        taught, teacher = Teachers({}, control.base, control.prompting, labels), control.folder
    else:
        taught = train_teachers(pipeline, control)
        teacher = taught.models[recipe.label.teacher]
        labels = soft_labels(pipeline, taught.prompting, teacher)
    unlabelled, stacked = pipeline.unlabelled(), None
    if recipe.stack.teachers:
        bases = (control.base, control.prompting), (taught.base, taught.prompting)
        stacked = pipeline.stack(*bases, taught.evidence, labels, unlabelled)
        labels = stacked.labels
    starts = {"base": control.base, "label_only_sft": control.folder, "teacher": teacher}
    start = starts[recipe.distil.start]
    if recipe.distil.start_rank:
        start = pipeline.reduce(start, control.base, control.prompting, recipe.distil.start_rank)
    # Without a stack, unlabelled pairs have no labels to distil: `encode` alone learns from them.
    taught_by_stack = unlabelled if stacked else None
    distilled = pipeline.train(
        "distil", control.prompting, start, soft_labels=labels, unlabelled=taught_by_stack
    )
    both = encode(pipeline, control.prompting, distilled, unlabelled) if recipe.encode.steps else distilled
    student = pipeline.as_adapter(both, control.base, labels, control.prompting)
    return Student(student, distilled, teacher, taught, stacked)


def train_teachers(pipeline: Pipeline, control: Control) -> Teachers:
    """Train the generative teacher on traces, on its own traces and by RL, as far as the recipe says."""
    warm = warm_up_teachers(pipeline, control)
    if not pipeline.recipe.rl.steps:
        return warm
    return replace(warm, models={**warm.models, "rl": pipeline.train("rl", warm.prompting, warm.last)})


def warm_up_teachers(pipeline: Pipeline, control: Control) -> Teachers:
    """Train the generative teacher as far as RL starts from it."""
    recipe = pipeline.recipe
    one_base = recipe.model.teacher == recipe.model.student_base
    base = control.base if one_base else pipeline.base("teacher_base", recipe.model.teacher)
    prompting = control.prompting if one_base else Prompting.load(control.form, base)
    start = control.folder if recipe.cot_sft.start == "label_only_sft" else base
    if recipe.cot_sft.traces == "own":
        evidence: Path | None = own_traces(pipeline, prompting, start)
    else:
        evidence = pipeline.evidence(control.prompting, control.folder)
    last = pipeline.train("cot_sft", prompting, start, evidence=evidence)
    pipeline.check_parse_rate(prompting, last)
    models = {"cot_sft": last}
    if recipe.self_sft.steps:
        own = own_traces(pipeline, prompting, last)
        models["self_sft"] = pipeline.train("self_sft", prompting, last, evidence=own)
    return Teachers(models, base, prompting, evidence)


def _predict_controls(
    pipeline: Pipeline, pairs: Sequence[Pair], cross_encoder: Path | None
) -> list[Predictions]:
    """Predict with the systems that are not the student's kind of model."""
    train, grades = pipeline.data.train, len(GRADES)
    found = [majority(train, pairs, grades), bm25(train, pairs, grades)]
    found += [predict_by_cosine(pipeline, encoder, pairs) for encoder in pipeline.recipe.evaluate.encoders]
    if cross_encoder:
        found.append(predict_by_cross_encoder(pipeline, pairs, cross_encoder))
    return found


def _remove_interrupted_exports(out: Path) -> None:
    for partial in out.glob(f".{CHECKPOINT}.*"):
        shutil.rmtree(partial)
