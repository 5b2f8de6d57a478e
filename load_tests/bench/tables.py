"""Formats `bench.json` as Markdown tables."""

from collections.abc import Iterator, Mapping
from typing import Any

from load_tests.figures import markdown_table

Row = Mapping[str, Any]


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
        markdown_table([_ratio_row(name, ratio) for name, ratio in document["ratio_details"].items()]),
        "",
        markdown_table([_summary_row(row) for row in document["summary"]]),
        "",
        *_remarks(document),
    ]
    return "\n".join(lines) + "\n"


def _ratio_row(name: str, ratio: Row) -> dict[str, str]:
    what = f"{ratio['over']} / {ratio['under']}, {ratio['rounds']} rounds"
    return {
        "ratio": name,
        "median": _number(ratio["value"], 2),
        "min": _number(ratio["low"], 2),
        "max": _number(ratio["high"], 2),
        "what": ratio["reason"] or what,
    }


def _summary_row(row: Row) -> dict[str, str]:
    rates, latencies = row["pairs_per_s"], row["latency_ms"]
    known, share = row["known_share"], row["share_of_peak"]
    return {
        "part": row["part"] if row["load"] is None else f"{row['part']} at {row['load']:.0%}",
        "server": f"{row['peer']} ({row['tuning']})",
        "notes": str(row["notes"]),
        "note tokens": _number(row["note_tokens"], 0),
        "pairs/s: min": _number(rates["min"], 2),
        "median": _number(rates["median"], 2),
        "max": _number(rates["max"], 2),
        "p50 ms": _number(latencies["p50"], 0),
        "p90": _number(latencies["p90"], 0),
        "p99": _number(latencies["p99"], 0),
        "unanswered": str(row["unanswered"]),
        "CPU ms/pair": _number(row["cpu_ms_per_pair"], 1),
        "RSS MiB": _number(row["peak_rss_mib"], 0),
        "prompt tokens": _number(row["prompt_tokens_per_pair"], 0),
        "computed": _number(row["computed_tokens_per_pair"], 0),
        "cached pairs": "–" if known is None else f"{known:.0%}",
        "share of peak": "–" if share is None else f"{share:.0%} ({row['peak']})",
    }


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
