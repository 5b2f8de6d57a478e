#!/usr/bin/env python3
"""Draws a dashboard as one picture, straight from Prometheus: python deploy/grafana/draw_dashboard.py scoring --out scoring.png

It is for incident notes, and for places without Grafana. It runs the dashboard's queries over the last minutes; it does not look like Grafana.
"""

import argparse
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, Formatter, PercentFormatter

FOLDER = Path(__file__).parent / "dashboards"
STEPS = 150
ROW_INCHES, WIDTH_INCHES = 2.8, 15
MOST_NAMED = 8
# Functions, because each panel needs its own formatter: a formatter belongs to one axis.
UNITS: Mapping[str, Callable[[], Formatter]] = {
    "s": partial(EngFormatter, "s", sep=""),
    "bytes": partial(EngFormatter, "B", sep=""),
    "percentunit": partial(PercentFormatter, 1),
}


@dataclass(frozen=True, slots=True)
class Window:
    """Holds the time range to draw, in seconds since 1970, and the range of rates as a PromQL duration."""

    start: float
    end: float
    rate: str

    @property
    def step(self) -> float:
        """Return the seconds between two points."""
        return max((self.end - self.start) / STEPS, 1)


@dataclass(frozen=True, slots=True)
class Series:
    """Holds one line: its labels, and its points as (points,) days since 1970 and (points,) values."""

    labels: Mapping[str, str]
    days: np.ndarray
    values: np.ndarray


def ask(prometheus: str, query: str, window: Window) -> list[Series]:
    """Run a panel's query for all jobs and instances. Raises httpx.HTTPError when Prometheus does not answer or refuses the query."""
    filled = query.replace("$__rate_interval", window.rate)
    filled = filled.replace("$job", ".+").replace("$instance", ".+")
    parameters: dict[str, str | float] = {
        "query": filled,
        "start": window.start,
        "end": window.end,
        "step": window.step,
    }
    answer = httpx.get(f"{prometheus}/api/v1/query_range", params=parameters, timeout=30)
    series = []
    for found in answer.raise_for_status().json()["data"]["result"]:
        seconds, values = np.array(found["values"], dtype=float).T
        series.append(Series(found["metric"], seconds / 86_400, values))
    return series


def draw(dashboard: Mapping[str, Any], prometheus: str, window: Window) -> Figure:
    """Draw every panel in the dashboard's layout, from the Prometheus at that base URL. A panel without data says so."""
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    # Rows that only hold a title are left out of the picture's height.
    lines = sorted({panel["gridPos"]["y"] for panel in panels})
    figure = Figure(figsize=(WIDTH_INCHES, ROW_INCHES * len(lines) + 0.5), layout="constrained")
    figure.suptitle(f"{dashboard['title']}, {time.strftime('%Y-%m-%d %H:%M', time.gmtime(window.end))} UTC")
    grid = figure.add_gridspec(len(lines), 24)
    for panel in panels:
        place = panel["gridPos"]
        axes = figure.add_subplot(grid[lines.index(place["y"]), place["x"] : place["x"] + place["w"]])
        _draw_panel(axes, panel, prometheus, window)
        axes.set_xlim(window.start / 86_400, window.end / 86_400)
        locator = AutoDateLocator(minticks=3, maxticks=6)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, show_offset=False))
    return figure


def _draw_panel(axes: Any, panel: Mapping[str, Any], prometheus: str, window: Window) -> None:
    axes.set_title(panel["title"], fontsize=9, loc="left")
    axes.tick_params(labelsize=7)
    lines = [
        (_legend(target["legendFormat"], series.labels), series)
        for target in panel["targets"]
        for series in ask(prometheus, target["expr"], window)
        if np.isfinite(series.values).any()
    ]
    if not lines:
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", color="grey", fontsize=8)
    elif panel["type"] == "heatmap":
        _draw_heatmap(axes, [series for _, series in lines])
    else:
        _draw_lines(axes, panel["fieldConfig"]["defaults"], lines)


def _legend(template: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"{{(\w+)}}", lambda found: labels.get(found[1], ""), template)


def _draw_lines(axes: Any, drawn: Mapping[str, Any], lines: Sequence[tuple[str, Series]]) -> None:
    # Largest first, so that the legend, which names only some lines, names the visible ones.
    lines = sorted(lines, key=lambda line: -np.nanmax(line[1].values))
    if "stacking" in drawn["custom"]:
        days, values = _on_one_axis([series for _, series in lines])
        axes.stackplot(days, np.nan_to_num(values), labels=[name for name, _ in lines], alpha=0.7)
    else:
        for name, series in lines:
            axes.plot(series.days, series.values, label=name, linewidth=1)
    axes.set_ylim(bottom=0)
    if drawn["unit"] in UNITS:
        axes.yaxis.set_major_formatter(UNITS[drawn["unit"]]())
    handles, names = axes.get_legend_handles_labels()
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.1), "ncols": 4, "frameon": False}
    axes.legend(handles[:MOST_NAMED], names[:MOST_NAMED], fontsize=6, **below)


def _draw_heatmap(axes: Any, buckets: Sequence[Series]) -> None:
    """Draw counts per bucket: Prometheus's buckets include those below them."""
    bounded = sorted(buckets, key=lambda each: float(each.labels["le"]))
    days, values = _on_one_axis(bounded)
    counts = np.diff(np.nan_to_num(values), axis=0, prepend=0)
    axes.pcolormesh(days, np.arange(len(bounded)), counts, cmap="Blues", shading="nearest")
    axes.set_yticks(range(len(bounded)), [each.labels["le"] for each in bounded])


def _on_one_axis(lines: Sequence[Series]) -> tuple[np.ndarray, np.ndarray]:
    """Align the lines: (points,) the days of any line, and (lines, points) values, NaN where a line has none."""
    days = np.unique(np.concatenate([series.days for series in lines]))
    values = np.full((len(lines), len(days)), np.nan)
    for row, series in zip(values, lines, strict=True):
        row[np.searchsorted(days, series.days)] = series.values
    return days, values


def main() -> None:
    """Draw the dashboard that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dashboard", choices=sorted(path.stem for path in FOLDER.glob("*.json")))
    parser.add_argument("--prometheus", default="http://localhost:9090", help="base URL of Prometheus")
    parser.add_argument("--minutes", type=float, default=60, help="how far back to look")
    parser.add_argument("--rate", default="1m", help="range of rates: at least four scrape intervals")
    parser.add_argument("--out", type=Path, required=True, help="PNG or SVG file")
    options = parser.parse_args()
    end = time.time()
    window = Window(end - 60 * options.minutes, end, options.rate)
    dashboard = json.loads((FOLDER / f"{options.dashboard}.json").read_text(encoding="utf-8"))
    draw(dashboard, options.prometheus, window).savefig(options.out, dpi=110)


if __name__ == "__main__":
    main()
