"""Formats `bench.json` as Markdown tables."""

from collections.abc import Iterator, Mapping
from typing import Any

from load_tests.figures import markdown_table

Row = Mapping[str, Any]

_RATIOS = ("ratio", "median", "min", "max", "what")
_SUMMARY = (
    "part", "server", "notes", "note tokens", "pairs/s: min", "median", "max", "p50 ms", "p90", "p99", "p99.9", "unanswered",
    "CPU ms/pair", "RSS MiB", "prompt tokens", "computed", "cached pairs", "share of peak",
)  # fmt: skip


def to_markdown(document: Mapping[str, Any]) -> str:
    """Format `report.md`."""
    machine = document["machine"]
    peaks = ", ".join(f"{name} {rate:.0f}" for name, rate in machine["gemm_gflops"].items())
    lines = [
        f"# {document['checkpoint']['name']} on {machine['processor']}, {machine['cores']} cores",
        "",
        f"{document['date']}, seed {document['plan']['seed']}. Load average before: {machine['load_before']:.2f}. "
        f"Peak of matrix products in GFLOPS: {peaks or 'not measured'}.",
        "",
        markdown_table(_RATIOS, (_ratio_cells(name, row) for name, row in document["ratio_details"].items())),
        "",
        markdown_table(_SUMMARY, (_summary_cells(row) for row in document["summary"])),
        "",
        *_remarks(document),
    ]
    return "\n".join(lines) + "\n"


def _ratio_cells(name: str, row: Row) -> list[str]:
    if row["value"] is None:
        return [name, "–", "–", "–", row["reason"]]
    numbers = [f"{row[key]:.2f}" for key in ("value", "low", "high")]
    return [name, *numbers, f"{row['over']} / {row['under']}, {row['rounds']} rounds"]


def _summary_cells(row: Row) -> list[str]:
    rates = row["pairs_per_s"]
    share = row["share_of_peak"]
    return [
        row["part"] if row["load"] is None else f"{row['part']} at {row['load']:.0%}",
        f"{row['peer']} ({row['tuning']})",
        str(row["notes"]),
        _number(row["note_tokens"], 0),
        *(_number(rates[key], 2) for key in ("min", "median", "max")),
        *(_number(row["latency_ms"][name], 0) for name in ("p50", "p90", "p99", "p99.9")),
        str(row["unanswered"]),
        _number(row["cpu_ms_per_pair"], 1),
        _number(row["peak_rss_mib"], 0),
        _number(row["prompt_tokens_per_pair"], 0),
        _number(row["computed_tokens_per_pair"], 0),
        "–" if row["known_share"] is None else f"{row['known_share']:.0%}",
        "–" if share is None else f"{share:.0%} ({row['peak']})",
    ]


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _remarks(document: Mapping[str, Any]) -> Iterator[str]:
    for each in document["agreement"]:
        maximum, mean = _number(each["maximum"], 4), _number(each["mean"], 4)
        yield f"- {each['peer']} ({each['tuning']}): expected grades differ from ours by {mean} on average, {maximum} at most"
    for name, found in document["saturation"].items():
        kept, lost = _number(found["kept_up"], 2), _number(found["not_kept_up"], 2)
        yield f"- {name} keeps up with {kept} requests/s, but not with {lost}"
    for name, seconds in document["ready_s"].items():
        yield f"- {name} was ready after {_number(seconds, 1)} s"
    for name, reason in document["absent"].items():
        yield f"- {name} did not start: {reason}"
    for name, reason in document["disagreeing"].items():
        yield f"- {name} is not compared: {reason}"
    for reason in document["skipped"].values():
        yield f"- not measured: {reason}"
