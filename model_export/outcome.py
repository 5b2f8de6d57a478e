"""What a run leaves behind: results.json, report.html and, through the gates, the checkpoint and its adapter."""

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
from model_export.checkpoint.writer import CheckpointSpec, OnProgress, code_version
from model_export.data.pairs import GRADES, Pair, listed
from model_export.data.prepare import Data, read_base
from model_export.data.prompting import PromptForm
from model_export.evaluation.baselines import bm25, majority
from model_export.evaluation.evaluate import (
    ALL,
    Differences,
    Evaluation,
    Predictions,
    evaluate,
    format_number,
)
from model_export.evaluation.evaluate_checkpoints import fit
from model_export.evaluation.failures import find_failures
from model_export.evaluation.winners import METRIC_TITLES
from model_export.recipe import Recipe
from model_export.reports.report import RunReport, difference_cell, write_report
from model_export.run_log import read_log
from model_export.stages import StageRecord, hash_of
from model_export.work import ADAPTER, CUT
from service.contract.manifest import Lineage, hash_file

CHECKPOINT, REPORT, RESULTS = "checkpoint", "report.html", "results.json"
_STUDENT = "student"


@dataclass(frozen=True)
class Outcome:
    """A run whose stages are done. `systems` and `evaluation` are on `pairs`, of the dev data."""

    recipe: Recipe
    recipe_text: str
    data: Data
    pairs: Sequence[Pair]
    systems: Sequence[Predictions]
    evaluation: Evaluation
    stages: Sequence[StageRecord]


@dataclass(frozen=True, slots=True)
class Models:
    """Folders of the models that the checkpoint's lineage names. `student` is as it is served."""

    student: Path
    base: Path
    teacher: Path


def write_results_and_report(outcome: Outcome, logs: Sequence[Path], out: Path) -> None:
    """The table as data, and the page; both say when a control won, and whether RL taught anything."""
    results = {
        "recipe": outcome.recipe.name,
        "seed": outcome.recipe.seed,
        "recipe_text": outcome.recipe_text,
        "code_version": code_version(),
        **outcome.evaluation.to_json(),
        "stages": [asdict(stage) for stage in outcome.stages],
    }
    (out / RESULTS).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    report = RunReport(
        name=outcome.recipe.name,
        recipe_text=outcome.recipe_text,
        evaluation=outcome.evaluation,
        predictions=outcome.systems,
        pairs=outcome.pairs,
        log=[row for log in logs for row in read_log(log)],
        notes=tuple(_notes(outcome)),
        stages=[asdict(stage) for stage in outcome.stages],
    )
    write_report(out / REPORT, report)


def write_checkpoint(
    outcome: Outcome,
    form: PromptForm,
    models: Models,
    student: Predictions,
    out: Path,
    on_progress: OnProgress,
) -> None:
    """The student as the service takes it, calibrated and measured by `student`, what it says of all dev pairs.

    Raises GateError, and then leaves what lay there.
    """
    recipe, dev_pairs = outcome.recipe, outcome.data.dev
    fitted = fit(student, dev_pairs, recipe.seed)
    served = _measure_served(outcome, student)
    failures = find_failures(form, models.student, fitted.calibration, fitted.decisions)
    spec = CheckpointSpec(
        name=recipe.export.name or recipe.name,
        base=read_base(models.base),
        template=form.template,
        criteria=form.criteria,
        limits=form.limits,
        lineage=_lineage(outcome, models),
        calibration=fitted.calibration,
        decisions=fitted.decisions,
        dev_metrics=_dev_metrics(served),
        quantization="w8a8" if recipe.export.int8 else None,
        training=_training_notes(outcome, served, failures),
    )
    gate_pairs = sample_pairs(dev_pairs, recipe.export.gate_pairs)
    plan = ExportPlan(models.student, spec, gate_pairs, with_vllm=recipe.export.with_vllm)
    export(plan, out / CHECKPOINT, force=True, on_progress=on_progress)
    if recipe.export.adapter_rank:
        _write_adapter(spec, models.student, out / ADAPTER, recipe.export.adapter_rank)


def _measure_served(outcome: Outcome, student: Predictions) -> Evaluation:
    """The student on all dev pairs, beside what needs no model; the table itself, where it is about all of them."""
    data, grades = outcome.data, len(GRADES)
    if len(outcome.pairs) == len(data.dev):
        return outcome.evaluation
    systems = [majority(data.train, data.dev, grades), bm25(data.train, data.dev, grades), student]
    recipe = outcome.recipe
    return evaluate(systems, data.dev, data.long_tail, seed=recipe.seed, draws=recipe.evaluate.draws)


def _write_adapter(spec: CheckpointSpec, student: Path, out: Path, rank: int) -> None:
    assert spec.training is not None  # noqa: S101 - set above
    energy = json.loads((student / CUT).read_text(encoding="utf-8"))["energy_kept"]
    shutil.copytree(student / ADAPTER, out, dirs_exist_ok=True)
    description = AdapterDescription(
        name=spec.name,
        base=spec.base.name,
        rank=rank,
        energy_kept=energy,
        template=spec.template.name,
        criteria=spec.criteria,
        limits=spec.limits,
        calibration=spec.calibration,
        decisions=spec.decisions,
        lineage=spec.lineage,
        dev_metrics=dict(spec.dev_metrics),
        training=spec.training,
    )
    describe_adapter(out, description)


def _notes(outcome: Outcome) -> Iterator[str]:
    if left_out := outcome.data.left_out:
        yield (
            f"{len(left_out)} dev pairs were left out, since another source trains on their query: "
            f"{listed(left_out)}."
        )


def _lineage(outcome: Outcome, models: Models) -> Lineage:
    weights = {path.name: hash_file(path) for path in sorted(models.teacher.glob("*.safetensors"))}
    return Lineage(
        recipe_hash=hash_of(outcome.recipe.model_dump(mode="json")),
        data_hashes=outcome.data.hashes,
        teacher_fingerprint=hash_of(weights),
        code_version=code_version(),
    )


def _dev_metrics(evaluation: Evaluation) -> dict[str, float]:
    found = evaluation.rows[_STUDENT][ALL]
    figures = {name: round(value, 4) for name, value in found.items() if value is not None}
    return figures | {"pairs": evaluation.sizes[ALL]["pairs"]}


def _training_notes(outcome: Outcome, served: Evaluation, failures: tuple[str, ...]) -> TrainingNotes:
    recipe, measured, compared = outcome.recipe, served.sizes[ALL]["pairs"], len(outcome.pairs)
    beside = (
        "" if measured == compared else f", and beside all controls (the first table) on {compared:,} of them"
    )
    reinforced = f"{recipe.rl.steps} of RL" if recipe.rl.steps else "no RL"
    stages = (
        f"Recipe `{recipe.name}`, seed {recipe.seed}: {recipe.label_only_sft.steps} steps of label-only training for the "
        f"control; teacher: {recipe.cot_sft.steps} steps on reasoning traces, {reinforced}; soft labels of "
        f"{recipe.label.paths} paths by the teacher `{recipe.label.teacher}`; student: {recipe.distil.steps} steps from "
        f"{recipe.distil.start}, gold labels weighing {recipe.distil.gold_weight:g}."
    )
    return TrainingNotes(
        data=tuple(_data_lines(outcome)),
        recipe=stages,
        controls=tuple(_control_rows(outcome.evaluation)),
        differences=tuple(_difference_rows(outcome.evaluation, served)),
        failures=failures,
        limits=(
            f"Measured on {measured:,} dev pairs whose queries were not trained on{beside}; other queries, other figures.",
        ),
    )


def _data_lines(outcome: Outcome) -> Iterator[str]:
    train, dev = _sources(outcome.data.train), _sources(outcome.data.dev)
    licences = {source.name: source.licence for source in outcome.recipe.data.sources}
    for name, pairs in train.items():
        licence = licences.get(name, "made by the project's own generator")
        yield f"{name}: {pairs:,} pairs to train, {dev.get(name, 0):,} to measure ({licence})"


def _control_rows(evaluation: Evaluation) -> Iterator[tuple[str, ...]]:
    metrics = ("accuracy", "macro_f1", "qwk", "ndcg_at_10", "ece_after", "parse_rate")
    yield ("system", *(METRIC_TITLES[metric] for metric in metrics))
    for system, splits in evaluation.rows.items():
        values = (splits[ALL][metric] for metric in metrics)
        yield (system, *map(format_number, values))


def _difference_rows(evaluation: Evaluation, served: Evaluation) -> Iterator[tuple[str, ...]]:
    """Against every control on the pairs that all were measured on, and against what a search engine has anyway on all, by split."""
    metrics = ("macro_f1", "qwk", "ndcg_at_10")
    yield ("on", "student less", *(METRIC_TITLES[metric] for metric in metrics))

    def row(on: str, control: str, found: Differences) -> tuple[str, ...]:
        return (on, control, *(difference_cell(found[control][_STUDENT][metric]).text for metric in metrics))

    for control in evaluation.controls:
        yield row(f"{evaluation.sizes[ALL]['pairs']:,} pairs", control, evaluation.differences)
    for split, found in {ALL: served.differences, **served.split_differences}.items():
        yield row(f"{split}: {served.sizes[split]['pairs']:,}", "bm25", found)


def _sources(pairs: Sequence[Pair]) -> Counter[str]:
    return Counter(pair.source for pair in pairs)
