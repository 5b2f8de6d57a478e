"""The outputs of a run: results.json, report.html and, behind the gates, the checkpoint and its adapter."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from model_export.checkpoint.adapter import AdapterDescription, describe_adapter
from model_export.checkpoint.export import ExportPlan, export
from model_export.checkpoint.gates import sample_pairs
from model_export.checkpoint.model_card import TrainingNotes
from model_export.checkpoint.terms import write_terms
from model_export.checkpoint.writer import (
    CheckpointSpec,
    code_version,
    second_reading,
    write_probes,
    write_vector_probes,
)
from model_export.data.prepare import read_base
from model_export.data.prompting import PromptForm
from model_export.encoding import SecondReading
from model_export.evaluation.evaluate import (
    ALL,
    Differences,
    Evaluation,
    Predictions,
    evaluate,
    format_number,
)
from model_export.evaluation.explanations import table_of, to_json
from model_export.evaluation.failures import find_failures
from model_export.evaluation.fitted import Fitted
from model_export.evaluation.winners import METRIC_TITLES
from model_export.pipeline import ADAPTER, CUT
from model_export.progress import OnProgress
from model_export.recipe import Recipe
from model_export.reports.report import RunResult, difference_cell, write_report
from model_export.stages import hash_of
from service.contract.manifest import ENCODER_NAME, Lineage, hash_file

CHECKPOINT, REPORT, RESULTS = "checkpoint", "report.html", "results.json"
_STUDENT = "student"


@dataclass(frozen=True, slots=True)
class Models:
    """Folders of the models that the checkpoint's lineage names. `student` is the one that is served.

    `base` and `teacher_base` are what student and teacher were trained from.
    """

    student: Path
    base: Path
    teacher: Path
    teacher_base: Path


def write_results_and_report(result: RunResult, out: Path) -> None:
    """Write the table as results.json and the page report.html."""
    results = {
        "recipe": result.recipe.name,
        "seed": result.recipe.seed,
        "recipe_text": result.recipe_text,
        "code_version": code_version(),
        **result.evaluation.to_json(),
        "explanations": to_json(result.explained),
        "teachers": result.teachers and result.teachers.to_json(),
        "vectors": result.vectors and result.vectors.to_json(),
        "stages": [asdict(record) for record in result.stages],
    }
    (out / RESULTS).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    write_report(out / REPORT, result)


def write_checkpoint(
    result: RunResult,
    form: PromptForm,
    models: Models,
    on_dev: Sequence[Predictions],
    fitted: Fitted,
    second: SecondReading | None,
    out: Path,
    on_progress: OnProgress,
) -> None:
    """Export the student with what was fitted on its predictions for all dev pairs, and with its encoder if it has one.

    `on_dev` are predictions for all dev pairs: those of the controls that cost little, and of the student.
    Raises GateError, and then leaves any earlier checkpoint in place.
    """
    recipe, dev_pairs = result.recipe, result.data.dev
    served = _measure_served(result, on_dev)
    failures = find_failures(form, models.student, fitted)
    spec = CheckpointSpec(
        name=recipe.export.name or recipe.name,
        base=read_base(models.base),
        template=form.template,
        criteria=form.criteria,
        limits=form.limits,
        lineage=_lineage(result, models),
        calibration=fitted.calibration,
        decisions=fitted.decisions,
        dev_metrics=_dev_metrics(served),
        vectors=second.trained if second else None,
        quantization="w8a8" if recipe.export.int8 else None,
        training=_training_notes(result, served, [each.system for each in on_dev], failures),
    )
    gate_pairs = sample_pairs(dev_pairs, recipe.export.gate_pairs)
    gates = second.gates if second else ()
    plan = ExportPlan(models.student, spec, gate_pairs, with_vllm=recipe.export.with_vllm, measured=gates)
    export(plan, out / CHECKPOINT, on_progress)
    if recipe.export.adapter_rank:
        write_adapter(spec, models.student, out / ADAPTER, recipe.export.adapter_rank, on_progress)


def _measure_served(result: RunResult, on_dev: Sequence[Predictions]) -> Evaluation:
    """Measure the student on all dev pairs, beside the controls that cost little."""
    data, recipe = result.data, result.recipe
    if len(result.pairs) == len(data.dev):
        return result.evaluation
    return evaluate(on_dev, data.dev, data.long_tail, seed=recipe.seed, draws=recipe.evaluate.draws)


def write_adapter(spec: CheckpointSpec, student: Path, out: Path, rank: int, on_progress: OnProgress) -> None:
    """Write the student's adapter with the probes of its merged weights, in float32, complete for `assemble`."""
    energy = json.loads((student / CUT).read_text(encoding="utf-8"))["energy_kept"]
    shutil.copytree(student / ADAPTER, out, dirs_exist_ok=True)
    description = AdapterDescription(
        **spec.shared(),
        name=spec.name,
        base=spec.base.name,
        rank=rank,
        energy_kept=energy,
        template=spec.template.name,
    )
    write_probes(student, spec, out, on_progress)
    if spec.vectors:
        shutil.copytree(student / ENCODER_NAME / ADAPTER, out / ENCODER_NAME, dirs_exist_ok=True)
        reading = second_reading(spec, spec.vectors, student)
        write_vector_probes(student, spec, reading, out, on_progress)
    describe_adapter(out, description)
    write_terms(out, spec.base, spec.lineage)


def _lineage(result: RunResult, models: Models) -> Lineage:
    weights = {path.name: hash_file(path) for path in sorted(models.teacher.glob("*.safetensors"))}
    own_base = models.teacher_base != models.base
    return Lineage(
        recipe_hash=hash_of(result.recipe.model_dump(mode="json")),
        data_hashes=result.data.hashes,
        teacher_fingerprint=hash_of(weights),
        teacher_base=read_base(models.teacher_base) if own_base else None,
        code_version=code_version(),
    )


def _dev_metrics(evaluation: Evaluation) -> dict[str, float]:
    found = evaluation.rows[_STUDENT][ALL]
    figures = {name: round(value, 4) for name, value in found.items() if value is not None}
    return figures | {"pairs": evaluation.sizes[ALL]["pairs"]}


def _training_notes(
    result: RunResult, served: Evaluation, systems: Sequence[str], failures: tuple[str, ...]
) -> TrainingNotes:
    """Describe the training; `systems` are those that are measured on all dev pairs."""
    recipe, measured, compared = result.recipe, served.sizes[ALL]["pairs"], len(result.pairs)
    beside = (
        "" if measured == compared else f", and against all controls (first table) on {compared:,} of them"
    )
    encoder = recipe.cross_encoder
    base = Path(encoder.base).name
    cross_encoder = f" Cross-encoder: {encoder.steps} steps from {base}." if encoder.steps else ""
    stages = (
        f"Recipe `{recipe.name}`, seed {recipe.seed}. Control: {recipe.label_only_sft.steps} steps of label-only training."
        f"{cross_encoder} {_describe_teacher(recipe)} Student: {recipe.distil.steps} steps from {recipe.distil.start}, weight "
        f"of the gold label {recipe.distil.gold_weight:g}."
    )
    return TrainingNotes(
        data=tuple(_data_lines(result)),
        recipe=stages,
        controls=tuple(_control_rows(result.evaluation)),
        differences=tuple(_difference_rows(result.evaluation, served, systems)),
        failures=failures,
        explanations=tuple(table_of(result.explained)) if result.explained else (),
        limits=(
            f"Measured on {measured:,} dev pairs whose queries were not in training{beside}. Expect other figures on other "
            "queries.",
        ),
    )


def _describe_teacher(recipe: Recipe) -> str:
    if recipe.label.teacher == "label_only_sft":
        return f"Teacher of traces: the control, by its evidence on at most {recipe.evidence.pairs:,} pairs."
    rl = f"{recipe.rl.steps} steps of RL" if recipe.rl.steps else "no RL"
    return (
        f"Teacher: {recipe.cot_sft.steps} steps on reasoning traces, {rl}. Soft labels: {recipe.label.paths} paths per pair "
        f"by the teacher `{recipe.label.teacher}`."
    )


def _data_lines(result: RunResult) -> Iterator[str]:
    train, dev = (Counter(pair.source for pair in pairs) for pairs in (result.data.train, result.data.dev))
    licences = {source.name: source.licence for source in result.recipe.data.sources}
    for name, pairs in train.items():
        licence = licences.get(name, "generated by the project")
        yield f"{name}: {pairs:,} pairs to train on, {dev[name]:,} to measure on ({licence})"


def _control_rows(evaluation: Evaluation) -> Iterator[tuple[str, ...]]:
    metrics = ("accuracy", "macro_f1", "qwk", "ndcg_at_10", "ece_after", "parse_rate")
    yield ("system", *(METRIC_TITLES[metric] for metric in metrics))
    for system, splits in evaluation.rows.items():
        values = (splits[ALL][metric] for metric in metrics)
        yield (system, *map(format_number, values))


def _difference_rows(
    evaluation: Evaluation, served: Evaluation, systems: Sequence[str]
) -> Iterator[tuple[str, ...]]:
    """Yield the student's differences to each control on the compared pairs and, by split, on all dev pairs.

    On all dev pairs it is compared with the controls among `systems`, but for the majority, which can't rank.
    """
    metrics = ("macro_f1", "qwk", "ndcg_at_10")
    yield ("on", "student minus", *(METRIC_TITLES[metric] for metric in metrics))

    def row(on: str, control: str, found: Differences) -> tuple[str, ...]:
        return (on, control, *(difference_cell(found[control][_STUDENT][metric]).text for metric in metrics))

    for control in evaluation.controls:
        yield row(f"{evaluation.sizes[ALL]['pairs']:,} pairs", control, evaluation.differences)
    rivals = [control for control in served.controls if control in systems and control != "majority"]
    for split, found in {ALL: served.differences, **served.split_differences}.items():
        for control in rivals:
            yield row(f"{split}: {served.sizes[split]['pairs']:,}", control, found)
