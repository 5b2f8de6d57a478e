"""Draws the quality of note vectors over their speed: a run's comparison of readings beside the rates of `vector_counts`.

    .venv/bin/python -m load_tests.vector_curve runs/mine/results.json load_tests/results/vector-counts.json --out curve.png

Vertical bars are the paired 95 % intervals of the difference to the text, horizontal ones the slowest and fastest round. Dotted
lines are bi-encoders, whose speed is not measured; the dashed line is the share of the text's figure that a run accepts.
"""

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

from load_tests.vector_counts import TEXT
from model_export.evaluation.evaluate import ALL
from model_export.evaluation.winners import METRIC_TITLES
from model_export.recipe_stages import EncodeConfig

_METRICS = ("macro_f1", "qwk", "ndcg_at_10")
_DPI = 150


@dataclass(frozen=True, slots=True)
class Point:
    """A reading's figure and rate, each as (least, middle, greatest); a bi-encoder has no rate."""

    name: str
    quality: tuple[float, float, float]
    rates: tuple[float, float, float] | None


def read_points(
    compared: Mapping[str, Any], rates: Mapping[str, list[float]], metric: str
) -> Iterator[Point]:
    """Yield a point for each reading of a run's `vectors`; without an interval, as the text has none, all three are the figure."""
    [text] = compared["controls"]
    for system, splits in compared["rows"].items():
        figure = splits[ALL][metric]
        interval = compared["differences"][text].get(system, {}).get(metric)
        quality = (figure, figure, figure)
        if interval:
            before = compared["rows"][text][ALL][metric]
            quality = (before + interval["low"], figure, before + interval["high"])
        reading = TEXT if system == text else f"{system.removeprefix('vectors_')} vectors"
        if reading in rates:
            found = rates[reading]
            yield Point(reading, quality, (min(found), statistics.median(found), max(found)))
        else:
            yield Point(system, quality, None)


def _draw(axes: Axes, points: list[Point]) -> None:
    for point in points:
        least, middle, greatest = point.quality
        if point.rates is None:
            axes.axhline(middle, linestyle=":", color="grey", linewidth=1.2)
            axes.annotate(
                point.name, (0.01, middle), xycoords=("axes fraction", "data"), va="bottom", fontsize=8
            )
            continue
        slow, rate, fast = point.rates
        spread = {"xerr": [[rate - slow], [fast - rate]], "yerr": [[middle - least], [greatest - middle]]}
        axes.errorbar(
            rate, middle, **spread, fmt="o", color="#d55e00" if point.name == TEXT else "#0072b2", capsize=2
        )
        axes.annotate(
            point.name, (rate, middle), xytext=(-6, 6), textcoords="offset points", ha="right", fontsize=9
        )
        if point.name == TEXT:
            axes.axhline(EncodeConfig().min_share * middle, linestyle="--", color="#d55e00", linewidth=1)
    axes.set(xscale="log", xlabel="pairs/s")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(0.15)
    axes.grid(alpha=0.25)


def draw_curve(compared: Mapping[str, Any], rates: Mapping[str, list[float]], out: Path) -> None:
    """Write a PNG with a panel for each metric."""
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(_METRICS)), _METRICS, strict=True):
        axes.set_title(METRIC_TITLES[metric])
        _draw(axes, list(read_points(compared, rates, metric)))
    figure.savefig(out, dpi=_DPI, metadata={"Software": None})


def main() -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="results.json of a run with [encode]")
    parser.add_argument("rates", type=Path, help="raw results of load_tests.vector_counts")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    compared = json.loads(options.results.read_text(encoding="utf-8"))["vectors"]
    if not compared:
        raise SystemExit(f"{options.results} compares no readings: its recipe has no [encode]")
    raw = json.loads(options.rates.read_text(encoding="utf-8"))
    draw_curve(compared, raw["figures"]["pairs_per_s"], options.out)


if __name__ == "__main__":
    main()
