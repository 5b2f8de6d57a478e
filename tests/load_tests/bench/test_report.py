"""A run writes its results as JSON, a summary and plots."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from load_tests.bench.machine import Machine
from load_tests.bench.plan import Plan
from load_tests.bench.records import OURS, Records, agreement
from load_tests.bench.report import Subject, to_json, write
from load_tests.bench.saturation import Probe, Saturation
from load_tests.raw_results import read_versions
from service.contract.checkpoint import Checkpoint
from tests.load_tests.bench.made_records import measurement

MACHINE = Machine(
    "A processor", 2, 24.0, "Linux x86_64", 0.1, {"float32": 200.0, "bfloat16": 400.0, "int8": 800.0}, "cpu"
)
RATIOS = {
    "cold_vs_best_peer", "cold_vs_peer_defaults", "student_vs_best_peer", "zipf_vs_best_peer", "http_vs_offline_engine",
    "best_peer_p99_over_ours", "vectors_vs_best_peer", "vectors_vs_text", "unknown_vs_text", "zipf_vectors_vs_best_peer",
    "best_peer_p99_over_vectors",
}  # fmt: skip


@pytest.fixture
def records() -> Records:
    measurements = [
        measurement(
            peer=peer,
            round=number,
            pairs_per_s=rate * (number + 1),
            computed_tokens_per_pair=None if peer == "loop | slow" else 100,
        )
        for peer, rate in ((OURS, 10.0), ("loop | slow", 5.0))
        for number in range(3)
    ]
    measurements += [measurement(part="sweeps", notes=notes, pairs_per_s=notes) for notes in (1, 5, 20)]
    return Records(
        measurements,
        [agreement("loop | slow", "tuned", [1.0], [1.25]), agreement("broken", "tuned", [1.0], [math.nan])],
        absent={"infinity (tuned)": "Unavailable: no network"},
        skipped={"zipf": "zipf: not selected"},
        saturation={"Notegrade (tuned)": Saturation(2.0, math.inf, [Probe(2.0, 8.0, 8.0, False)])},
        ready_s={"Notegrade (tuned)": 23.4},
    )


@pytest.fixture
def document(records: Records, checkpoint: Checkpoint) -> dict[str, Any]:
    return to_json(MACHINE, Plan(7), Subject(checkpoint.manifest, 100_000_000), records)


def test_document_has_measurements_and_ratios_or_reasons(document: dict[str, Any]) -> None:
    assert document["format"] == 1
    assert set(document["ratios"]) == set(document["ratio_details"]) == RATIOS
    assert document["ratios"]["cold_vs_best_peer"] == 2
    for name, value in document["ratios"].items():
        assert (value is None) == bool(document["ratio_details"][name]["reason"]), name
    assert len(document["measurements"]) == 9
    assert document["plan"]["seed"] == 7
    assert document["machine"]["processor"] == "A processor"
    assert {"python", "torch"} <= set(document["versions"]) == set(read_versions())
    assert document["checkpoint"]["fingerprint"].startswith("sha256:")


def test_summary_has_median_and_range_of_the_rounds(document: dict[str, Any]) -> None:
    ours, loop = document["summary"][:2]
    assert ours["pairs_per_s"] == {"median": 20, "min": 10, "max": 30}
    assert ours["unanswered"] == 3
    # 16 s of processor time for 80 pairs.
    assert ours["cpu_ms_per_pair"] == pytest.approx(200)
    # 2 operations x 1e8 parameters x 100 tokens x 20 pairs/s, of 400 GFLOPS: the checkpoint isn't quantised, and bf16 is faster.
    assert (ours["share_of_peak"], ours["peak"]) == (pytest.approx(1.0), "bfloat16")
    assert loop["share_of_peak"] is None


def test_int8_weights_are_compared_with_the_int8_peak() -> None:
    assert MACHINE.peak("w8a8") == ("int8", 800.0)
    assert Machine("A", 1, 1.0, "Linux", 0.0).peak(None) is None


def test_nan_is_null(document: dict[str, Any]) -> None:
    assert document["agreement"][1]["maximum"] is None
    assert document["saturation"]["Notegrade (tuned)"]["not_kept_up"] is None
    json.dumps(document, allow_nan=False)


def test_files_are_written_and_agree(document: dict[str, Any], tmp_path: Path) -> None:
    written = {path.name for path in write(document, tmp_path / "results")}
    # Only one note length was measured, so there is no curve to draw.
    assert written == {"bench.json", "report.md", "rates.svg", "notes.svg"}
    assert json.loads((tmp_path / "results/bench.json").read_text(encoding="utf-8")) == document
    report = (tmp_path / "results/report.md").read_text(encoding="utf-8")
    assert "| cold_vs_best_peer | 2.00 | 2.00 | 2.00 |" in report
    assert "infinity (tuned) did not start: Unavailable: no network" in report
    assert "not measured: zipf: not selected" in report
    rows = [line for line in report.splitlines() if line.startswith("| ")]
    assert {line.replace(r"\|", "").count("|") for line in rows} == {6, 18}


def test_empty_run_is_reported(checkpoint: Checkpoint, tmp_path: Path) -> None:
    empty = to_json(MACHINE, Plan(7), Subject(checkpoint.manifest, 1), Records())
    assert set(empty["ratios"].values()) == {None}
    assert {path.name for path in write(empty, tmp_path)} == {"bench.json", "report.md"}


def test_latencies_are_plotted_over_the_load(
    records: Records, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    records.measurements += [measurement(part="p99", load=load) for load in (0.4, 0.8)]
    document = to_json(MACHINE, Plan(7), Subject(checkpoint.manifest, 1), records)
    assert "latency.svg" in {path.name for path in write(document, tmp_path)}
    assert "| p99 at 80% |" in (tmp_path / "report.md").read_text(encoding="utf-8")
