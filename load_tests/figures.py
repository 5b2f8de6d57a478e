"""Formats and summarises the figures of load tests."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "max": 100.0}


def spread(values: Sequence[float]) -> str:
    """Format the minimum, median and maximum."""
    return f"{min(values):,.2f} / {statistics.median(values):,.2f} / {max(values):,.2f}"


def print_sides(sides: Mapping[str, Sequence[float]], unit: str, base: str) -> None:
    """Print the spread of each side over the rounds, and of its ratio to the side `base` within each round."""
    for name, values in sides.items():
        print(f"{name}: {spread(values)} {unit}")
    for name, values in sides.items():
        if name != base:
            print(f"{name} / {base}: {spread([a / b for a, b in zip(values, sides[base], strict=True)])}")


def percentile(values: Iterable[float], percent: float) -> float:
    """Return the nearest-rank percentile, NaN of no values."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(round(percent * len(ranked) / 100, 6)) - 1)] if ranked else math.nan


def percentiles_ms(seconds: Iterable[float]) -> dict[str, float]:
    """Return p50, p90, p99 and the maximum in milliseconds; empty for no values."""
    ranked = sorted(seconds)
    return {name: 1000 * percentile(ranked, percent) for name, percent in PERCENTILES.items() if ranked}


def markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Format rows, cells by heading, as a Markdown table; empty without rows."""
    heads = [[*rows[0]], ["---"] * len(rows[0])] if rows else []
    lines = [*heads, *(row.values() for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def finite_json(value: Any) -> Any:
    """Replace NaN and infinities by None, since JSON has no numbers for them."""
    if isinstance(value, dict):
        return {key: finite_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite_json(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
