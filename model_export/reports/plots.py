"""Draws the report's figures as PNG images; each function returns None if there is no data.

The background is white in both colour schemes of the page.
"""

import io
import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix

from model_export.evaluation.fit_calibration import ECE_BINS
from model_export.evaluation.measures import most_probable

LogRow = Mapping[str, Any]
# A curve is (steps, values).
Curve = tuple[list[int], list[float]]

DPI = 150
_COLUMNS = 3
# Okabe and Ito's colour-blind-safe palette; line styles distinguish the lines in greyscale.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))


def curve(log: Sequence[LogRow], stage: str, metric: str) -> Curve:
    """Extract a stage's logged values of a metric, in the log's order, without rows that have no finite number."""
    points = [
        (int(row["step"]), float(row[metric]))
        for row in log
        if row["stage"] == stage and isinstance(row.get(metric), int | float) and math.isfinite(row[metric])
    ]
    return [step for step, _ in points], [value for _, value in points]


def plot_stages(log: Sequence[LogRow], metric: str) -> bytes | None:
    """Plot a metric by step, with one panel per stage that logged it."""
    stages = dict.fromkeys(str(row["stage"]) for row in log)
    panels = {stage: {stage: curve(log, stage, metric)} for stage in stages}
    return _plot_panels(panels, metric, legend=False)


def plot_metrics(
    log: Sequence[LogRow], metrics: Mapping[str, str], stages: Mapping[str, str]
) -> bytes | None:
    """Plot one panel per logged metric, with a line per stage; `metrics` and `stages` map names to titles."""
    panels = {
        title: {name: curve(log, stage, metric) for stage, name in stages.items()}
        for metric, title in metrics.items()
    }
    return _plot_panels(panels, "", legend=True)


def _plot_panels(panels: Mapping[str, Mapping[str, Curve]], y_title: str, *, legend: bool) -> bytes | None:
    logged = {title: lines for title, lines in panels.items() if any(steps for steps, _ in lines.values())}
    if not logged:
        return None
    figure, all_axes = _make_panels(list(logged), 3.6, 2.7)
    for axes, lines in zip(all_axes, logged.values(), strict=True):
        _draw(axes, lines, "step", y_title)
    if legend:
        figure.set_figheight(figure.get_figheight() + 0.5)
        _add_legend(figure)
    figure.get_layout_engine().set(h_pad=0.12, w_pad=0.1)
    return _as_png(figure)


def plot_curves(panels: Mapping[str, Mapping[str, Curve]], x: str, y: str) -> bytes:
    """Plot a panel per title, with a line per name."""
    figure, all_axes = _make_panels(list(panels), 3.6, 3.1)
    for axes, lines in zip(all_axes, panels.values(), strict=True):
        _draw(axes, lines, x, y)
    _add_legend(figure)
    return _as_png(figure)


def _draw(axes: Axes, lines: Mapping[str, Curve], x: str, y: str) -> None:
    for (name, (steps, values)), colour, style in zip(
        lines.items(), cycle(_COLOURS), cycle(_LINES), strict=False
    ):
        if steps:  # without steps it still uses up its colour: a stage has the same in every panel
            marker = "o" if len(steps) == 1 else None
            axes.plot(steps, values, linestyle=style, color=colour, label=name, marker=marker, linewidth=1.6)
    axes.set(xlabel=x, ylabel=y)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.grid(alpha=0.25)


def plot_confusion(gold: np.ndarray, probabilities: Mapping[str, np.ndarray]) -> bytes | None:
    """Plot each system's confusion matrix with gold grades as rows, from (pairs, grades) probabilities."""
    if not probabilities:
        return None
    figure, all_axes = _make_panels(list(probabilities), 3.6, 3.4)
    for axes, rows in zip(all_axes, probabilities.values(), strict=True):
        grades = np.arange(rows.shape[1])
        counts = confusion_matrix(gold, most_probable(rows), labels=grades)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for row, column in np.ndindex(*counts.shape):
            colour = "white" if shares[row, column] > 0.7 else "black"
            text = f"{shares[row, column]:.0%}\n{counts[row, column]:,}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
        axes.set(xlabel="grade given", ylabel="gold grade", xticks=grades, yticks=grades)
    return _as_png(figure)


def plot_reliability(gold: np.ndarray, probabilities: Mapping[str, np.ndarray]) -> bytes | None:
    """Plot accuracy against confidence, with a panel per named (pairs, grades) array."""
    if not probabilities:
        return None
    figure, all_axes = _make_panels(list(probabilities), 3.6, 3.4)
    for axes, rows in zip(all_axes, probabilities.values(), strict=True):
        confidence = rows.max(axis=1).clip(max=1)
        right = (most_probable(rows) == gold).astype(int)
        accuracy, mean_confidence = calibration_curve(right, confidence, n_bins=ECE_BINS)
        axes.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle=":")
        share = np.full(len(gold), 1 / len(gold))
        axes.hist(confidence, ECE_BINS, range=(0, 1), weights=share, color="#d0d7de", label="share of pairs")
        axes.plot(mean_confidence, accuracy, "o-", color=_COLOURS[0], label="accuracy")
        axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    _add_legend(figure)
    return _as_png(figure)


def plot_spread(panels: Mapping[str, Mapping[str, Sequence[float]]]) -> bytes | None:
    """Plot a panel per title with a row per system and a dot per value; empty panels are left out."""
    shown = {title: rows for title, rows in panels.items() if any(rows.values())}
    if not shown:
        return None
    tallest = max(map(len, shown.values()))
    figure, all_axes = _make_panels(list(shown), 3.9, 0.26 * tallest + 0.9)
    for number, (axes, by_system) in enumerate(zip(all_axes, shown.values(), strict=True)):
        for row, values in enumerate(by_system.values()):
            axes.plot(values, [row] * len(values), "o", color=_COLOURS[0], markersize=5, alpha=0.75)
        axes.set(yticks=range(len(by_system)), ylim=(len(by_system) - 0.5, -0.5))
        axes.set_yticklabels([] if number % _COLUMNS else list(by_system))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.grid(alpha=0.25)
    return _as_png(figure)


def _add_legend(figure: Figure) -> None:
    """Add one legend for all panels below them, where it covers no data."""
    lines = {
        label: handle
        for axes in figure.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=len(lines), frameon=False)


def _make_panels(titles: Sequence[str], width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Make a figure with a panel per title, each `width` by `height` inches."""
    columns = min(_COLUMNS, len(titles))
    rows = math.ceil(len(titles) / columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, [
        figure.add_subplot(rows, columns, number, title=title) for number, title in enumerate(titles, start=1)
    ]


def _as_png(figure: Figure) -> bytes:
    image = io.BytesIO()
    # Without matplotlib's version in the metadata, equal figures give equal bytes.
    figure.savefig(image, format="png", dpi=DPI, metadata={"Software": None})
    return image.getvalue()
