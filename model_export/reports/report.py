"""Writes the report of a run: one self-contained HTML file that makes no network requests.

It contains no query or note text.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from model_export.data.pairs import Pair, listed
from model_export.data.prepare import Data
from model_export.evaluation.evaluate import ALL, Evaluation, Predictions, format_number
from model_export.evaluation.explanations import Figures, table_of
from model_export.evaluation.fit_calibration import cross_fitted
from model_export.evaluation.judged import Judged
from model_export.evaluation.paired_bootstrap import COMPARED_METRICS, Difference
from model_export.evaluation.winners import LOWER_IS_BETTER, METHOD, METRIC_TITLES
from model_export.recipe import Recipe
from model_export.reports.plots import (
    DPI,
    LogRow,
    plot_confusion,
    plot_metrics,
    plot_reliability,
    plot_stages,
)
from model_export.stages import StageRecord

_TEMPLATE = "report_template.html"
CSS_DPI = 96
_RL = {"rl": "rl"}
_COMPARED = ("macro_f1", "qwk", "ndcg_at_10", "ece_after")
STEP_ACCURACY = "step_accuracy/"
RL_METRICS = {"reward": "reward", "parse_rate": "parse rate", "unmasked_share": "unmasked tokens"}


@dataclass(frozen=True)
class RunResult:
    """A run whose stages are done.

    Attributes:
        recipe_text: the recipe as TOML, with its changes.
        pairs: the dev pairs, or a sample of them, that `systems` and `evaluation` are on. The report has no text of them.
        explained: figures of the student's explanations by source.
        teachers: the stack, each of its teachers alone, and the stack without each; None where there is no stack.
        vectors: the student's reading of notes as text, and as each number of vectors; None without an encoder.
        log: rows of the run log, `{"stage", "step", ...metrics}`.
    """

    recipe: Recipe
    recipe_text: str
    data: Data
    pairs: Sequence[Pair]
    systems: Sequence[Predictions]
    evaluation: Evaluation
    stages: Sequence[StageRecord]
    log: Sequence[LogRow]
    explained: Mapping[str, Figures] = field(default_factory=dict)
    teachers: Evaluation | None = None
    vectors: Evaluation | None = None


@dataclass(frozen=True)
class Picture:
    """A plot for a page; `image` is None if there is nothing to plot."""

    title: str
    caption: str
    alt: str
    image: bytes | None

    @property
    def width(self) -> int:
        """The width in CSS pixels, from bytes 16 to 19 of the PNG; with it text is equally large in every plot."""
        return int.from_bytes((self.image or b"")[16:20]) * CSS_DPI // DPI

    @property
    def uri(self) -> str:
        """The image as a data URI."""
        return f"data:image/png;base64,{base64.b64encode(self.image or b'').decode()}"


@dataclass(frozen=True)
class Cell:
    """A formatted number of a table, its difference to a control, and how both are highlighted."""

    text: str
    difference: str = ""
    is_best: bool = False
    is_sure: bool = False


def write_report(out: Path, run: RunResult) -> None:
    """Write the report to the file `out`; its folder must exist."""
    page = render_page(
        _TEMPLATE,
        run=run,
        evaluation=run.evaluation,
        verdicts=rl_verdicts(run.evaluation),
        metric_titles=METRIC_TITLES,
        compared=COMPARED_METRICS,
        splits=[_describe_split(run.evaluation, split) for split in run.evaluation.sizes],
        explained=table_of(run.explained),
        teachers=comparison_rows(run.teachers) if run.teachers else [],
        vectors=comparison_rows(run.vectors) if run.vectors else [],
        figures=_draw_figures(run),
        left_out=listed(run.data.left_out),
        stage_times=[(stage, timedelta(seconds=round(stage.seconds))) for stage in run.stages],
    )
    out.write_text(page, encoding="utf-8")


def render_page(template: str, **values: Any) -> str:
    """Render a packaged template; the values are HTML-escaped."""
    environment = Environment(
        loader=PackageLoader(__package__, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(**values)


def rl_verdicts(evaluation: Evaluation) -> list[str]:
    """State whether RL improved the teacher's accuracy on all pairs."""
    found = evaluation.differences.get("cot_sft", {}).get("rl", {}).get("accuracy")
    if found is None or found.difference is None:
        return []
    claim = "helped" if found.difference > 0 else "did not help"
    caveat = "" if found.excludes_zero else " (not significant)"
    difference = difference_cell(found).text
    return [f"RL {claim}{caveat}: the exact-grade accuracy of rl minus that of cot_sft is {difference}."]


def comparison_rows(compared: Evaluation) -> list[list[str]]:
    """Return the table of systems that are compared with one: metrics over all pairs, and the differences to that one."""
    [control] = compared.controls
    rows = [
        [
            "",
            *(METRIC_TITLES[metric] for metric in _COMPARED),
            *(f"{METRIC_TITLES[metric]}, minus {control}" for metric in _COMPARED),
        ]
    ]
    for system, splits in compared.rows.items():
        differences = compared.differences[control].get(system)
        beside = [difference_cell(differences[metric]).text if differences else "" for metric in _COMPARED]
        rows.append([system, *(format_number(splits[ALL][metric]) for metric in _COMPARED), *beside])
    return rows


def _describe_split(evaluation: Evaluation, split: str) -> dict[str, Any]:
    """Collect a split's table, and the differences of our system to each control."""
    differences = evaluation.differences_on(split)
    ours = next((system for system in METHOD if system in evaluation.rows), None)
    against_main = differences[evaluation.controls[0]] if evaluation.controls else {}
    columns = [_column(evaluation, split, metric, against_main) for metric in METRIC_TITLES]
    return {
        "name": split,
        "size": evaluation.sizes[split],
        "table": dict(zip(evaluation.rows, zip(*columns, strict=True), strict=True)),
        "ours": ours,
        "against": {
            control: [difference_cell(difference) for difference in by_system[ours].values()]
            for control, by_system in differences.items()
            if ours in by_system
        },
    }


def _column(
    evaluation: Evaluation, split: str, metric: str, against_main: Mapping[str, Mapping[str, Difference]]
) -> list[Cell]:
    values = {system: by_split[split][metric] for system, by_split in evaluation.rows.items()}
    defined = [value for value in values.values() if value is not None]
    best = (min if metric in LOWER_IS_BETTER else max)(defined, default=None)
    cells = []
    for system, value in values.items():
        difference = against_main.get(system, {}).get(metric)
        beside = difference_cell(difference) if difference else Cell("")
        cells.append(
            Cell(format_number(value), beside.text, value is not None and value == best, beside.is_sure)
        )
    return cells


def difference_cell(difference: Difference) -> Cell:
    """Format a difference with its interval, if it has one; an undefined difference is a dash."""
    if difference.low is None or difference.high is None:
        return Cell(_signed(difference.difference))
    interval = f"[{_signed(difference.low)}, {_signed(difference.high)}]"
    return Cell(f"{_signed(difference.difference)} {interval}", is_sure=difference.excludes_zero)


def _signed(value: float | None) -> str:
    # A true minus sign is as wide as a plus sign, so columns align.
    return "–" if value is None else f"{value:+.3f}".replace("-", "−")


def _draw_figures(run: RunResult) -> list[Picture]:
    judged = Judged.of(run.pairs)
    curves = _draw_training(run.log)
    if "rl" in run.evaluation.rows:
        curves += _draw_rl(run.log)
    return [*curves, _draw_confusion(run, judged.gold), _draw_reliability(run, judged)]


def _draw_training(log: Sequence[LogRow]) -> list[Picture]:
    return [
        Picture(
            "Learning curves",
            "Training loss of each stage. A falling loss alone does not show learning; see the correlation.",
            "Loss by step for each stage.",
            plot_stages(log, "loss"),
        ),
        Picture(
            "Correlation of expected and gold grade",
            "Over the last few hundred training examples. Near 0 means that the model predicts the same for every pair.",
            "Correlation by step for each supervised stage.",
            plot_stages(log, "correlation"),
        ),
    ]


def _draw_rl(log: Sequence[LogRow]) -> list[Picture]:
    names = dict.fromkeys(name for row in log for name in row if name.startswith(STEP_ACCURACY))
    criteria = {name: name.removeprefix(STEP_ACCURACY) for name in names}
    return [
        Picture(
            "Reward and parse rate",
            "Means over the rollouts by RL step. Unmasked: share of the tokens that the step mask lets learn.",
            "Reward, parse rate and share of unmasked tokens of the rollouts by RL step.",
            plot_metrics(log, RL_METRICS, _RL),
        ),
        Picture(
            "Step accuracy",
            "Share of rollouts whose step is right, by RL step: equal to the data's finding, or not provably wrong.",
            f"Step accuracy by RL step for {', '.join(criteria.values())}.",
            plot_metrics(log, criteria, _RL),
        ),
    ]


def _draw_confusion(run: RunResult, gold: np.ndarray) -> Picture:
    shown = ("student", "label_only_sft")
    probabilities = {each.system: each.probabilities for each in run.systems if each.system in shown}
    return Picture(
        "Confusion",
        "Rows are gold grades and sum to 100 %. The number of pairs is below each share.",
        f"Confusion matrices of {', '.join(probabilities)}.",
        plot_confusion(gold, probabilities),
    )


def _draw_reliability(run: RunResult, judged: Judged) -> Picture:
    student = next((each.probabilities for each in run.systems if each.system == "student"), None)
    panels = {}
    if student is not None:
        after = cross_fitted(student, judged, run.evaluation.seed)
        panels = {"student, before calibration": student, "student, after calibration": after}
    return Picture(
        "Reliability",
        "Accuracy by confidence. On the dotted line the confidence equals the accuracy. Calibrated probabilities are"
        " cross-fitted: each half of the queries uses temperatures fitted on the other half.",
        "Accuracy against confidence of the student before and after calibration.",
        plot_reliability(judged.gold, panels),
    )
