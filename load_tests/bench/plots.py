"""Plots `bench.json` as SVG: throughput of every part, throughput over the shape of requests, and latency over load."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

Row = Mapping[str, Any]
# Okabe and Ito's colour-blind-safe palette; markers distinguish the lines in greyscale.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_FORMAT = "svg"


def draw_plots(document: Mapping[str, Any]) -> dict[str, bytes]:
    """Draw all plots that have data, by file name."""
    rounds = [row for row in document["summary"] if row["part"] not in ("sweeps", "p99")]
    sweeps = [row for row in document["summary"] if row["part"] == "sweeps"]
    loads = [row for row in document["summary"] if row["part"] == "p99"]
    usual = document["plan"]["shape"]
    drawn = {
        "rates": _bars(rounds),
        "notes": _curves(sweeps, "notes", {"note_tokens": usual["note_tokens"]}, "notes per request"),
        "latency": _latencies(loads),
        "note_tokens": _curves(sweeps, "note_tokens", {"notes": usual["notes"]}, "mean tokens per note"),
    }
    return {f"{name}.{_FORMAT}": _save(figure) for name, figure in drawn.items() if figure}


def _bars(rows: Sequence[Row]) -> Figure | None:
    """Plot median rates, with lines from minimum to maximum."""
    if not rows:
        return None
    figure = Figure(figsize=(8, 1 + 0.35 * len(rows)), layout="constrained")
    axes = figure.subplots()
    names = [f"{row['part']}: {row['peer']} ({row['tuning']})" for row in rows]
    rates = [row["pairs_per_s"] for row in rows]
    medians = [rate["median"] for rate in rates]
    spread = [
        [rate["median"] - rate["min"] for rate in rates],
        [rate["max"] - rate["median"] for rate in rates],
    ]
    parts = list(dict.fromkeys(row["part"] for row in rows))
    colours = [_COLOURS[parts.index(row["part"]) % len(_COLOURS)] for row in rows]
    # By position, since a name may occur twice.
    axes.barh(range(len(rows)), medians, xerr=spread, color=colours, capsize=3)
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.set_xlabel("pairs/s: median, min and max of the rounds")
    return figure


def _curves(rows: Sequence[Row], axis: str, fixed: Mapping[str, float], label: str) -> Figure | None:
    """Plot the rate over one dimension of the shape, with the other fixed."""
    shown = [row for row in rows if all(row[key] == value for key, value in fixed.items())]
    if len({row[axis] for row in shown}) < 2:
        return None
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for number, peer in enumerate(dict.fromkeys(row["peer"] for row in shown)):
        points = sorted((row[axis], row["pairs_per_s"]["median"]) for row in shown if row["peer"] == peer)
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            color=_COLOURS[number % len(_COLOURS)],
            marker=_MARKERS[number % len(_MARKERS)],
            label=peer,
        )
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(label)
    axes.set_ylabel("pairs/s")
    axes.legend()
    return figure


def _latencies(rows: Sequence[Row]) -> Figure | None:
    """Plot p50 and p99 over the load, for each contestant."""
    if len({row["load"] for row in rows}) < 2:
        return None
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for number, peer in enumerate(dict.fromkeys(row["peer"] for row in rows)):
        for name, style in (("p50", "--"), ("p99", "-")):
            points = sorted((row["load"], row["latency_ms"][name]) for row in rows if row["peer"] == peer)
            axes.plot(
                [100 * load for load, _ in points],
                [latency for _, latency in points],
                color=_COLOURS[number % len(_COLOURS)],
                marker=_MARKERS[number % len(_MARKERS)],
                linestyle=style,
                label=f"{peer}, {name}",
            )
    axes.set_yscale("log")
    axes.set_xlabel("offered load, % of the best peer's saturation")
    axes.set_ylabel("latency from the intended send time, ms")
    axes.legend()
    return figure


def _save(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # Without a date, so the same results give the same file.
    figure.savefig(buffer, format=_FORMAT, metadata={"Date": None})
    return buffer.getvalue()
