"""Draws the report's figures as PNG images; each function returns None if there is no data.

The background is white in both colour schemes of the page.
"""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import confusion_matrix

from model_export.evaluation.fit_calibration import ECE_BINS
from model_export.evaluation.measures import most_probable
from model_export.evaluation.paired_bootstrap import Difference

LogRow = Mapping[str, Any]
# A curve is (steps, values).
Curve = tuple[list[int], list[float]]

DPI = 150
_COLUMNS = 3
# Okabe and Ito's colour-blind-safe palette; line styles distinguish the lines in greyscale.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
_LINES = ("-", "--", "-.", ":")
STEP_ACCURACY = "step_accuracy/"


def curve(log: Sequence[LogRow], stage: str, metric: str) -> Curve:
    """Extract a stage's logged values of a metric, in the log's order, without rows that have no finite number."""
    points = [
        (int(row["step"]), float(row[metric]))
        for row in log
        if row["stage"] == stage and isinstance(row.get(metric), int | float) and math.isfinite(row[metric])
    ]
    return [step for step, _ in points], [value for _, value in points]


def logged_stages(log: Sequence[LogRow], metric: str) -> list[str]:
    """List the stages that logged a metric, in the log's order."""
    return [
        stage for stage in dict.fromkeys(str(row["stage"]) for row in log) if curve(log, stage, metric)[0]
    ]


def logged_criteria(log: Sequence[LogRow], stages: Sequence[str]) -> list[str]:
    """List the criteria whose step accuracy one of the stages logged, in the log's order."""
    rows = [row for row in log if row["stage"] in stages]
    names = dict.fromkeys(name for row in rows for name in row if name.startswith(STEP_ACCURACY))
    return [name.removeprefix(STEP_ACCURACY) for name in names]


def plot_curves(log: Sequence[LogRow], metric: str, title: str) -> bytes | None:
    """Plot a metric by step, with one panel per stage that logged it."""
    panels = {stage: {stage: curve(log, stage, metric)} for stage in logged_stages(log, metric)}
    return _plot_panels(panels, title, legend=False)


def plot_metrics_together(
    log: Sequence[LogRow], metrics: Mapping[str, str], stages: Mapping[str, str]
) -> bytes | None:
    """Plot one panel per logged metric, with a line per stage; `metrics` and `stages` map names to titles."""
    panels = {
        title: {name: curve(log, stage, metric) for stage, name in stages.items()}
        for metric, title in metrics.items()
    }
    logged = {title: lines for title, lines in panels.items() if any(steps for steps, _ in lines.values())}
    return _plot_panels(logged, "", legend=True)


def _plot_panels(panels: Mapping[str, Mapping[str, Curve]], y_title: str, *, legend: bool) -> bytes | None:
    if not panels:
        return None
    columns = min(_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    height = 2.7 * rows + (0.5 if legend else 0)
    figure = Figure(figsize=(3.6 * columns, height), layout="constrained")
    for number, (title, lines) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, columns, number)
        for (name, (steps, values)), colour, style in zip(lines.items(), _COLOURS, _LINES, strict=False):
            if not steps:  # still uses up its colour, so a stage has the same colour in every panel
                continue
            marker = "o" if len(steps) == 1 else None
            axes.plot(steps, values, style, color=colour, label=name, marker=marker, linewidth=1.6)
        axes.set(title=title, xlabel="step", ylabel=y_title)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.grid(alpha=0.25)
    if legend:
        _add_legend(figure)
    figure.get_layout_engine().set(h_pad=0.12, w_pad=0.1)
    return _as_png(figure)


def plot_confusion(gold: np.ndarray, probabilities: Mapping[str, np.ndarray]) -> bytes | None:
    """Plot each system's confusion matrix with gold grades as rows, from (pairs, grades) probabilities."""
    if not probabilities:
        return None
    figure = Figure(figsize=(3.6 * len(probabilities), 3.4), layout="constrained")
    for number, (system, rows) in enumerate(probabilities.items(), start=1):
        grades = np.arange(rows.shape[1])
        counts = confusion_matrix(gold, most_probable(rows), labels=grades)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes = figure.add_subplot(1, len(probabilities), number)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for row, column in np.ndindex(*counts.shape):
            colour = "white" if shares[row, column] > 0.7 else "black"
            text = f"{shares[row, column]:.0%}\n{counts[row, column]:,}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
        axes.set(title=system, xlabel="grade given", ylabel="gold grade", xticks=grades, yticks=grades)
    return _as_png(figure)


def plot_reliability(gold: np.ndarray, probabilities: Mapping[str, np.ndarray]) -> bytes | None:
    """Plot accuracy against confidence, with a panel per named (pairs, grades) array."""
    if not probabilities:
        return None
    figure = Figure(figsize=(3.6 * len(probabilities), 3.4), layout="constrained")
    for number, (title, rows) in enumerate(probabilities.items(), start=1):
        confidence, accuracy, share = _bins(gold, rows)
        axes = figure.add_subplot(1, len(probabilities), number)
        axes.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle=":")
        axes.bar(
            np.arange(ECE_BINS) / ECE_BINS,
            share,
            1 / ECE_BINS,
            align="edge",
            color="#d0d7de",
            label="share of pairs",
        )
        axes.plot(confidence, accuracy, "o-", color=_COLOURS[0], label="accuracy")
        axes.set(
            title=title, xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1), aspect="equal"
        )
    _add_legend(figure)
    return _as_png(figure)


def plot_spread(panels: Mapping[str, Mapping[str, Sequence[float]]], columns: int) -> bytes | None:
    """Plot a panel per title with a row per system and a dot per value; empty panels are left out."""
    shown = {title: rows for title, rows in panels.items() if any(rows.values())}
    if not shown:
        return None
    tallest = max(map(len, shown.values()))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(3.9 * columns, (0.26 * tallest + 0.9) * rows), layout="constrained")
    for number, (title, by_system) in enumerate(shown.items(), start=1):
        axes = figure.add_subplot(rows, columns, number)
        for row, values in enumerate(by_system.values()):
            axes.plot(values, [row] * len(values), "o", color=_COLOURS[0], markersize=5, alpha=0.75)
        axes.set(title=title, yticks=range(len(by_system)), ylim=(len(by_system) - 0.5, -0.5))
        axes.set_yticklabels(list(by_system) if number % columns == 1 or columns == 1 else [])
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.grid(alpha=0.25)
    return _as_png(figure)


def plot_intervals(intervals: Mapping[str, Difference], title: str) -> bytes | None:
    """Plot a row per name with its difference and interval, and a line at zero; undefined ones are left out."""
    defined = {name: found for name, found in intervals.items() if found.low is not None}
    if not defined:
        return None
    figure = Figure(figsize=(7.5, 0.32 * len(defined) + 0.9), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, color="grey", linewidth=1, linestyle=":")
    for row, found in enumerate(defined.values()):
        axes.plot([found.low, found.high], [row, row], "-", color=_COLOURS[0], linewidth=2)
        axes.plot([found.difference], [row], "o", color=_COLOURS[0])
    axes.set(xlabel=title, yticks=range(len(defined)), ylim=(len(defined) - 0.5, -0.5))
    axes.set_yticklabels(list(defined))
    axes.grid(alpha=0.25, axis="x")
    return _as_png(figure)


def _add_legend(figure: Figure) -> None:
    """Add one legend for all panels below them, where it covers no data."""
    lines = {
        label: handle
        for axes in figure.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=len(lines), frameon=False)


def _bins(gold: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute mean confidence and accuracy of the bins that are not empty, and every bin's share of pairs."""
    confidence = probabilities.max(axis=1)
    bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    counts = np.bincount(bins, minlength=ECE_BINS)
    filled = counts > 0
    mean_confidence = np.bincount(bins, confidence, ECE_BINS)[filled] / counts[filled]
    accuracy = np.bincount(bins, most_probable(probabilities) == gold, ECE_BINS)[filled] / counts[filled]
    return mean_confidence, accuracy, counts / len(gold)


def _as_png(figure: Figure) -> bytes:
    image = io.BytesIO()
    # Without matplotlib's version in the metadata, equal figures give equal bytes.
    figure.savefig(image, format="png", dpi=DPI, metadata={"Software": None})
    return image.getvalue()
