"""Writes the report of a run: one self-contained HTML file that makes no network requests.

It contains no query or note text.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from model_export.data.pairs import Pair
from model_export.evaluation.evaluate import ALL, Evaluation, Predictions, format_number, number_queries
from model_export.evaluation.fit_calibration import cross_fitted
from model_export.evaluation.paired_bootstrap import COMPARED_METRICS, Difference
from model_export.evaluation.winners import LOWER_IS_BETTER, METHOD, METRIC_TITLES
from model_export.reports.plots import (
    DPI,
    STEP_ACCURACY,
    LogRow,
    curve,
    logged_criteria,
    logged_stages,
    plot_confusion,
    plot_curves,
    plot_metrics_together,
    plot_reliability,
)

_TEMPLATE = "report_template.html"
CSS_DPI = 96
RL_STAGES = {"grpo": "grpo (no mask)", "sam": "sam (step mask)"}
RL_METRICS = {"reward": "reward", "parse_rate": "parse rate"}


@dataclass(frozen=True)
class RunReport:
    """The content of a report.

    Attributes:
        name: the run's name. recipe_text: its recipe, as TOML.
        evaluation: the evaluation of `predictions` on `pairs`, the dev pairs.
        pairs: only labels, criteria and the identity of queries are used, no text.
        log: rows of the run log, `{"stage", "step", ...metrics}`.
        notes: findings and warnings, shown first.
        stages: `{"name", "seconds", "status", "hash"}` for each stage, in order.
    """

    name: str
    recipe_text: str
    evaluation: Evaluation
    predictions: Sequence[Predictions]
    pairs: Sequence[Pair]
    log: Sequence[LogRow]
    notes: Sequence[str]
    stages: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Picture:
    """A plot for a page. `missing` names metrics that were not logged; `image` is None if there is nothing to plot."""

    title: str
    caption: str
    alt: str
    image: bytes | None
    missing: str = ""

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


def write_report(out: Path, run: RunReport) -> None:
    """Write the report to the file `out`; its folder must exist."""
    page = render_page(
        _TEMPLATE,
        run=run,
        evaluation=run.evaluation,
        verdicts=rl_verdicts(run.evaluation),
        metric_titles=METRIC_TITLES,
        compared=COMPARED_METRICS,
        splits=[_describe_split(run.evaluation, split) for split in run.evaluation.sizes],
        figures=_draw_figures(run),
        stages=[{**stage, "seconds": _format_seconds(stage["seconds"])} for stage in run.stages],
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
    """State whether RL, and whether its step mask, improved the teacher's accuracy on all pairs."""
    comparisons = (("cot_sft", "RL with the step mask"), ("grpo", "The step mask"))
    return [
        _verdict(evaluation, control, subject)
        for control, subject in comparisons
        if "sam" in evaluation.rows and control in evaluation.rows
    ]


def _verdict(evaluation: Evaluation, control: str, subject: str) -> str:
    ours, theirs = (evaluation.rows[system][ALL]["accuracy"] or 0.0 for system in ("sam", control))
    difference = evaluation.differences.get(control, {}).get("sam", {}).get("accuracy")
    interval, caveat = "", ""
    if difference is not None and difference.low is not None:
        interval = f", 95 % interval {_signed(difference.low)} to {_signed(difference.high)}"
        caveat = "" if difference.excludes_zero else " (not significant)"
    claim = "helped" if ours > theirs else "did not help"
    return (
        f"{subject} {claim}{caveat}: exact-grade accuracy is {ours:.3f} for sam and {theirs:.3f} for {control}"
        f" ({_signed(ours - theirs)}{interval})."
    )


def _describe_split(evaluation: Evaluation, split: str) -> dict[str, Any]:
    """Collect a split's table, and the differences of our system to each control."""
    differences = evaluation.differences if split == ALL else evaluation.split_differences[split]
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


def _format_seconds(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes:,} min {rest:02} s" if minutes else f"{seconds:.1f} s"


def _draw_figures(run: RunReport) -> list[Picture]:
    gold = np.array([pair.label for pair in run.pairs])
    curves = _draw_training(run.log)
    if "sam" in run.evaluation.rows:
        curves += _draw_rl(run.log)
    return [*curves, _draw_confusion(run, gold), _draw_reliability(run, gold)]


def _draw_training(log: Sequence[LogRow]) -> list[Picture]:
    trained = logged_stages(log, "loss")
    return [
        Picture(
            "Learning curves",
            "Training loss of each stage. A falling loss alone does not show learning; see the correlation.",
            f"Loss by step for {', '.join(trained)}.",
            plot_curves(log, "loss", "loss"),
            "" if trained else "Not logged: the loss of any stage.",
        ),
        Picture(
            "Correlation of expected and gold grade",
            "Over the last few hundred training examples. Near 0 means that the model predicts the same for every pair.",
            "Correlation by step.",
            plot_curves(log, "correlation", "correlation"),
            _missing_correlation(log, trained),
        ),
    ]


def _draw_rl(log: Sequence[LogRow]) -> list[Picture]:
    criteria = {f"{STEP_ACCURACY}{name}": name for name in logged_criteria(log, list(RL_STAGES))}
    return [
        Picture(
            "Reward and parse rate",
            "Means over the rollouts by RL step, with and without the step mask.",
            "Reward and parse rate of rollouts by RL step, one line for grpo and one for sam.",
            plot_metrics_together(log, RL_METRICS, RL_STAGES),
            _missing_pairs(log, RL_METRICS),
        ),
        Picture(
            "Step accuracy, with and without the mask",
            "Share of rollouts whose intermediate grade after a criterion is the gold grade, by RL step.",
            f"Step accuracy by RL step for {', '.join(criteria.values())}, one line for grpo and one for sam.",
            plot_metrics_together(log, criteria, RL_STAGES),
            _missing_pairs(log, criteria) if criteria else "Not logged: the step accuracy of grpo and sam.",
        ),
    ]


def _missing(what: str, stages: Sequence[str]) -> str:
    return f"Not logged: {what} of {', '.join(stages)}." if stages else ""


def _missing_correlation(log: Sequence[LogRow], trained: Sequence[str]) -> str:
    if not logged_stages(log, "correlation"):
        return _missing("the correlation", ["any stage"])
    # RL stages log a reward instead.
    without = [
        stage for stage in trained if stage not in RL_STAGES and not curve(log, stage, "correlation")[0]
    ]
    return _missing("the correlation", without)


def _missing_pairs(log: Sequence[LogRow], metrics: Mapping[str, str]) -> str:
    absent = {
        title: [stage for stage in RL_STAGES if not curve(log, stage, metric)[0]]
        for metric, title in metrics.items()
    }
    return " ".join(_missing(f"the {title}", stages) for title, stages in absent.items() if stages)


def _draw_confusion(run: RunReport, gold: np.ndarray) -> Picture:
    shown = ("student", "label_only_sft")
    probabilities = {each.system: each.probabilities for each in run.predictions if each.system in shown}
    return Picture(
        "Confusion",
        "Rows are gold grades and sum to 100 %. The number of pairs is below each share.",
        f"Confusion matrices of {', '.join(probabilities)}.",
        plot_confusion(gold, probabilities),
        _missing("the grades", [system for system in shown if system not in probabilities]),
    )


def _draw_reliability(run: RunReport, gold: np.ndarray) -> Picture:
    student = next((each.probabilities for each in run.predictions if each.system == "student"), None)
    panels = {}
    if student is not None:
        criteria = [pair.criteria for pair in run.pairs]
        after = cross_fitted(student, gold, number_queries(run.pairs), criteria, run.evaluation.seed)
        panels = {"student, before calibration": student, "student, after calibration": after}
    return Picture(
        "Reliability",
        "Accuracy by confidence. On the dotted line the confidence equals the accuracy. Calibrated probabilities are"
        " cross-fitted: each half of the queries uses temperatures fitted on the other half.",
        "Accuracy against confidence of the student before and after calibration.",
        plot_reliability(gold, panels),
        "" if panels else "Not logged: the student's grades.",
    )
