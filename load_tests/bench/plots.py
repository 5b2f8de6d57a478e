"""Plots `bench.json` as SVG: throughput of every part, throughput over notes per request, and latency over load."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Row = Mapping[str, Any]
# Okabe and Ito's colour-blind-safe palette; markers distinguish the lines in greyscale.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS = ("o", "s", "^", "D", "v", "P")


def draw_plots(document: Mapping[str, Any]) -> dict[str, bytes]:
    """Draw all plots that have data, by file name."""
    rows: list[Row] = document["summary"]
    usual = document["plan"]["shape"]["note_tokens"]
    drawn = {
        "rates.svg": _rates([row for row in rows if row["part"] not in ("sweeps", "p99")]),
        "notes.svg": _notes([row for row in rows if row["part"] == "sweeps" and row["note_tokens"] == usual]),
        "latency.svg": _latencies([row for row in rows if row["part"] == "p99"]),
    }
    return {name: _save(figure) for name, figure in drawn.items() if figure}


def _rates(rows: Sequence[Row]) -> Figure | None:
    """Plot median rates, with lines from minimum to maximum."""
    if not rows:
        return None
    figure = Figure(figsize=(8, 1 + 0.35 * len(rows)), layout="constrained")
    axes = figure.subplots()
    rates = [row["pairs_per_s"] for row in rows]
    medians = [rate["median"] for rate in rates]
    below = [rate["median"] - rate["min"] for rate in rates]
    above = [rate["max"] - rate["median"] for rate in rates]
    parts = list(dict.fromkeys(row["part"] for row in rows))
    colours = [_COLOURS[parts.index(row["part"]) % len(_COLOURS)] for row in rows]
    # By position, since a name may occur twice.
    axes.barh(range(len(rows)), medians, xerr=[below, above], color=colours, capsize=3)
    axes.set_yticks(range(len(rows)), [f"{row['part']}: {row['peer']} ({row['tuning']})" for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("pairs/s: median, min and max of the rounds")
    return figure


def _notes(rows: Sequence[Row]) -> Figure | None:
    """Plot the rate over notes per request, for each contestant."""
    if len({row["notes"] for row in rows}) < 2:
        return None
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots(subplot_kw={"xlabel": "notes per request", "ylabel": "pairs/s", "xscale": "log"})
    for number, peer in enumerate(dict.fromkeys(row["peer"] for row in rows)):
        points = [(row["notes"], row["pairs_per_s"]["median"]) for row in rows if row["peer"] == peer]
        _line(axes, number, peer, points)
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


def _latencies(rows: Sequence[Row]) -> Figure | None:
    """Plot p50 and p99 over the load, for each contestant."""
    if len({row["load"] for row in rows}) < 2:
        return None
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots(subplot_kw={"yscale": "log"})
    for number, peer in enumerate(dict.fromkeys(row["peer"] for row in rows)):
        for name, style in (("p50", "--"), ("p99", "-")):
            points = [(100 * row["load"], row["latency_ms"][name]) for row in rows if row["peer"] == peer]
            _line(axes, number, f"{peer}, {name}", points, style)
    axes.set_xlabel("offered load, % of the best peer's saturation")
    axes.set_ylabel("latency from the intended send time, ms")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def _line(
    axes: Axes, number: int, label: str, points: Sequence[tuple[float, float]], style: str = "-"
) -> None:
    colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
    axes.plot(*zip(*sorted(points), strict=True), color=colour, marker=marker, linestyle=style, label=label)


def _save(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # Without a date, so the same results give the same file.
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
