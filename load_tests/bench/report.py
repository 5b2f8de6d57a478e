"""Writes the results: `bench.json`, `report.md` and plots."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from load_tests.bench.machine import Machine
from load_tests.bench.plan import Plan
from load_tests.bench.plots import draw_plots
from load_tests.bench.records import Measurement, Records, compute_ratios
from load_tests.bench.tables import to_markdown
from load_tests.figures import PERCENTILES, finite_json
from load_tests.raw_results import read_versions
from service.contract.manifest import Manifest

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Subject:
    """The served checkpoint: its manifest, and the number of parameters that each token is multiplied by."""

    manifest: Manifest
    parameters: int


def to_json(machine: Machine, plan: Plan, subject: Subject, records: Records) -> dict[str, Any]:
    """Build the content of `bench.json`; NaN and infinity are null."""
    ratios = compute_ratios(records)
    document: dict[str, Any] = {
        "format": FORMAT,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": asdict(machine),
        "versions": read_versions(),
        "checkpoint": {
            "name": subject.manifest.name,
            "fingerprint": subject.manifest.fingerprint,
            "template": subject.manifest.template.name,
            "quantization": subject.manifest.quantization,
            "multiplied_parameters": subject.parameters,
        },
        "plan": asdict(plan),
        "ratios": {name: ratio.value for name, ratio in ratios.items()},
        "ratio_details": {name: asdict(ratio) for name, ratio in ratios.items()},
        "summary": summarise(machine, subject, records),
        "agreement": [asdict(each) for each in records.agreements],
        "saturation": {name: asdict(found) for name, found in records.saturation.items()},
        "ready_s": records.ready_s,
        "absent": records.absent,
        "disagreeing": records.disagreeing,
        "skipped": records.skipped,
        "measurements": [asdict(each) for each in records.measurements],
    }
    cleaned: dict[str, Any] = finite_json(document)
    return cleaned


def summarise(machine: Machine, subject: Subject, records: Records) -> list[dict[str, Any]]:
    """Summarise each part, shape and peer: medians over the rounds, and the range of the rate."""
    groups: dict[tuple[Any, ...], list[Measurement]] = {}
    for each in records.measurements:
        key = (each.part, each.load, each.notes, each.note_tokens, each.peer, each.tuning)
        groups.setdefault(key, []).append(each)
    return [_summary(machine, subject, group) for group in groups.values()]


def _summary(machine: Machine, subject: Subject, group: Sequence[Measurement]) -> dict[str, Any]:
    first, rates = group[0], [each.pairs_per_s for each in group]
    pairs = max(1, sum(each.pairs for each in group))
    computed = [each.computed_tokens_per_pair for each in group if each.computed_tokens_per_pair is not None]
    tokens = median(computed) if computed else None
    known = [each.known_share for each in group if each.known_share is not None]
    return {
        "part": first.part,
        "peer": first.peer,
        "tuning": first.tuning,
        "notes": first.notes,
        "note_tokens": first.note_tokens,
        "rounds": len(group),
        "pairs_per_s": {"median": median(rates), "min": min(rates), "max": max(rates)},
        "load": first.load,
        "latency_ms": {
            name: median(each.latency_ms.get(name, math.nan) for each in group) for name in PERCENTILES
        },
        "unanswered": sum(
            each.requests - each.outcomes.get("answered", 0) for each in group if each.outcomes
        ),
        "cpu_ms_per_pair": 1000 * sum(each.cpu_s for each in group) / pairs,
        "client_cpu_ms_per_pair": 1000 * sum(each.client_cpu_s for each in group) / pairs,
        "peak_rss_mib": max(each.peak_rss_mib for each in group),
        "prompt_tokens_per_pair": median(each.prompt_tokens_per_pair for each in group),
        "computed_tokens_per_pair": tokens,
        "known_share": median(known) if known else None,
        **_peak(machine, subject, tokens, median(rates)),
    }


def _peak(machine: Machine, subject: Subject, tokens: float | None, rate: float) -> dict[str, Any]:
    """Compute the used share of the peak: two operations per parameter and token, without attention and lm_head."""
    peak = machine.peak(subject.manifest.quantization)
    if peak is None or tokens is None:
        return {"share_of_peak": None, "peak": None}
    name, gflops = peak
    return {"share_of_peak": 2e-9 * subject.parameters * tokens * rate / gflops, "peak": name}


def write(document: dict[str, Any], folder: Path) -> list[Path]:
    """Write `bench.json`, `report.md` and the plots that have data, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, bytes] = {
        "bench.json": (json.dumps(document, indent=1, allow_nan=False) + "\n").encode(),
        "report.md": to_markdown(document).encode(),
        **draw_plots(document),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in files]
