"""`make train-tiny` trains a checkpoint, and the service serves it."""

import json
from pathlib import Path

import httpx
import pytest

from service.contract.checkpoint import load_checkpoint
from tests.end_to_end.service_process import MAKE_SERVE, start_service
from tests.processes import output_of

# Every stage runs: a few minutes on an idle machine with two cores.
pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1800)]

ROWS = [
    "majority",
    "bm25",
    "minilm",
    "cross_encoder",
    "zero_shot",
    "label_only_sft",
    "cot_sft",
    "rl",
    "stack",
    "student",
]
READINGS = ["student", "text_student", "vectors_1", "vectors_4", "mixed", "encoder_cosine", "minilm"]


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run `make train-tiny`, which takes a few minutes, and return its folder."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    output_of("make", "train-tiny", f"ARGS=--out {out}", within_s=1500)
    return out


def test_the_run_writes_a_table_with_every_control_and_a_report(tiny_run: Path) -> None:
    results = json.loads((tiny_run / "results.json").read_text(encoding="utf-8"))
    assert list(results["rows"]) == ROWS
    assert {"all", "long_tail"} <= results["rows"]["student"].keys()
    assert list(results["vectors"]["rows"]) == READINGS
    report = (tiny_run / "report.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in report


def test_the_student_beats_the_untrained_baselines(tiny_run: Path) -> None:
    rows = json.loads((tiny_run / "results.json").read_text(encoding="utf-8"))["rows"]
    assert rows["cot_sft"]["all"]["parse_rate"] > 0.9
    for metric in ("macro_f1", "qwk", "ndcg_at_10"):
        assert rows["student"]["all"][metric] > rows["zero_shot"]["all"][metric]
        assert rows["student"]["all"][metric] > rows["majority"]["all"][metric]


def test_every_gate_passed_including_vllm(tiny_run: Path) -> None:
    gates = json.loads((tiny_run / "checkpoint" / "gates.json").read_text(encoding="utf-8"))
    assert all(gate["passed"] for gate in gates)
    assert any("vllm" in gate["gate"] for gate in gates)


def test_the_service_reproduces_a_probe_of_the_trainer(tiny_run: Path, tmp_path: Path) -> None:
    checkpoint = tiny_run / "checkpoint"
    settings = {"NOTEGRADE_CHECKPOINT": str(checkpoint), "NOTEGRADE_ENGINE_DTYPE": "float32"}
    with start_service(tmp_path / "log", MAKE_SERVE, **settings) as service:
        service.wait_until_ready()
        probe = load_checkpoint(checkpoint).probes[0]
        note = {"id": "n", "title": probe.note.title, "body": probe.note.body}
        body = {"query": probe.query, "notes": [note], "deadline_ms": 60_000}
        answer = httpx.post(f"{service.url}/score", json=body, timeout=120).json()
    assert answer["results"][0]["outcome"] == "scored"
    assert answer["results"][0]["label_mass"] == pytest.approx(probe.label_mass, abs=1e-3)
