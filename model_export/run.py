"""The run of a recipe, top to bottom: from data to a checkpoint, a table and a report."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from model_export.checkpoint.writer import check_probes
from model_export.data.pairs import GRADES, Pair
from model_export.data.prompting import PromptForm, Prompting
from model_export.evaluation.baselines import bm25, majority
from model_export.evaluation.evaluate import Evaluation, Predictions, evaluate
from model_export.evaluation.fitted import fit
from model_export.outputs import CHECKPOINT, Models, write_checkpoint, write_results_and_report
from model_export.pipeline import Pipeline
from model_export.progress import OnProgress
from model_export.recipe import Recipe
from model_export.reports.report import RunResult
from model_export.run_log import LOG_NAME, read_log
from model_export.stages import Stages, lock


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
                     > SFT teacher > GRPO
                                   > GRPO with the step mask > soft labels > student

    Without RL (`rl.steps = 0`) the SFT teacher writes the soft labels.

    Writes `checkpoint/`, `report.html` and `results.json` into `out`. With `control_only` it trains the label-only control
    alone and writes no checkpoint.
    Raises NotegradeError for what a user can correct: bad data, an SFT teacher whose traces don't parse, a failed gate.
    """
    with lock(out):
        _remove_interrupted_exports(out)
        stages = Stages(out)
        pipeline = Pipeline(recipe, root, stages, on_progress)
        data = pipeline.data

        student_base = pipeline.base("student_base", recipe.model.student_base)
        form = PromptForm.of(recipe.model, data.criteria, data.teacher_criteria)
        student_prompting = Prompting.load(form, student_base)
        check_probes(form, student_prompting.tokenizer)
        student_prompting.check_queries([*data.train, *data.dev])
        control = pipeline.train("label_only_sft", student_prompting, student_base)

        trained = recipe.cross_encoder.steps and not control_only
        cross_encoder = pipeline.cross_encoder() if trained else None

        def predict_controls(pairs: Sequence[Pair]) -> list[Predictions]:
            found = [majority(data.train, pairs, len(GRADES)), bm25(data.train, pairs, len(GRADES))]
            found += [pipeline.predict_by_cosine(encoder, pairs) for encoder in recipe.evaluate.encoders]
            if cross_encoder:
                found.append(pipeline.predict_by_cross_encoder(pairs, cross_encoder))
            return found

        pairs = pipeline.dev_pairs()
        controls = predict_controls(pairs)
        systems = [
            *controls,
            pipeline.predict("zero_shot", pairs, student_prompting, student_base),
            pipeline.predict("label_only_sft", pairs, student_prompting, control),
        ]

        def measure() -> RunResult:
            found = evaluate(systems, pairs, data.long_tail, seed=recipe.seed, draws=recipe.evaluate.draws)
            log = [row for folder in stages.folders for row in read_log(folder / LOG_NAME)]
            return RunResult(recipe, recipe_text, data, pairs, systems, found, stages.records, log)

        if control_only:
            result = measure()
            write_results_and_report(result, out)
            return result.evaluation

        one_base = recipe.model.teacher == recipe.model.student_base
        teacher_base = student_base if one_base else pipeline.base("teacher_base", recipe.model.teacher)
        teacher_prompting = student_prompting if one_base else Prompting.load(form, teacher_base)
        teacher_start = control if recipe.cot_sft.start == "label_only_sft" else teacher_base
        if recipe.cot_sft.traces == "own":
            evidence: Path | None = pipeline.own_traces(teacher_prompting, teacher_start)
        else:
            evidence = pipeline.evidence(student_prompting, control)
        sft_teacher = pipeline.train("cot_sft", teacher_prompting, teacher_start, evidence=evidence)
        pipeline.check_parse_rate(teacher_prompting, sft_teacher)
        teachers = {"cot_sft": sft_teacher}
        if recipe.self_sft.steps:
            own = pipeline.own_traces(teacher_prompting, sft_teacher)
            sft_teacher = pipeline.train("self_sft", teacher_prompting, sft_teacher, evidence=own)
            teachers["self_sft"] = sft_teacher
        if recipe.rl.steps:
            teachers["rl"] = pipeline.train("rl", teacher_prompting, sft_teacher)
        teacher = teachers[recipe.label.teacher]
        soft_labels = pipeline.soft_labels(teacher_prompting, teacher)
        starts = {"base": student_base, "label_only_sft": control, "teacher": teacher}
        start = starts[recipe.distil.start]
        distilled = pipeline.train("distil", student_prompting, start, soft_labels=soft_labels)
        student = pipeline.as_adapter(distilled, student_base, soft_labels, student_prompting)

        for name, each in teachers.items():
            systems.append(pipeline.predict(name, pairs, teacher_prompting, each, reasons=True))
        on_pairs = pipeline.predict("student", pairs, student_prompting, student)
        systems.append(on_pairs)
        on_dev = [*controls, on_pairs]
        if len(pairs) < len(data.dev):
            on_all = pipeline.predict("student", data.dev, student_prompting, student)
            on_dev = [*predict_controls(data.dev), on_all]
        fitted = fit(on_dev[-1].probabilities, data.dev, recipe.seed)
        explained = pipeline.explain(student_prompting, student, fitted)
        result = replace(measure(), explained=explained)
        write_results_and_report(result, out)
        models = Models(student, student_base, teacher)
        write_checkpoint(result, form, models, on_dev, fitted, out, on_progress)
        return result.evaluation


def _remove_interrupted_exports(out: Path) -> None:
    for partial in out.glob(f".{CHECKPOINT}.*"):
        shutil.rmtree(partial)
