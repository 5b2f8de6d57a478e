import json
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model_export.checkpoint.gates import (
    GATES_NAME,
    Gate,
    GateData,
    GateError,
    GateLimits,
    check_gates,
    gate_int8,
    gate_vllm,
    sample_pairs,
    verify,
    write_gates,
)
from model_export.checkpoint.writer import write_contract
from model_export.data.pairs import Pair
from service.contract.checkpoint import Checkpoint, load_checkpoint
from service.contract.labels import LabelDistribution
from service.contract.probes import VECTOR_PROBES_NAME
from service.contract.prompt import Note
from service.errors import CheckpointError
from tests.checkpoints import make_checkpoint, sign, write_manifest
from tests.tiny_adapter import make_vector_student


def make_pairs(labels: Sequence[int], criteria: str = "general-1") -> list[Pair]:
    return [
        Pair(f"p{i}", f"query {i}", Note("", f"note number {i}"), label, "made-up", criteria)
        for i, label in enumerate(labels)
    ]


class FixedScorer:
    """Returns these grades in turn, repeatedly, each with a probability of 0.7."""

    def __init__(self, grades: Sequence[int], dtype: str = "float32") -> None:
        self._grades = grades
        self.dtype = dtype

    def distributions(self, prompts: Sequence[Sequence[int]]) -> Iterator[LabelDistribution]:
        for index, _ in enumerate(prompts):
            grade = self._grades[index % len(self._grades)]
            yield LabelDistribution(tuple(0.7 if g == grade else 0.1 for g in range(4)), 0.9)


@pytest.mark.parametrize(
    ("figure", "at_least", "passed"),
    [(0.5, False, True), (0.51, False, False), (0.5, True, True), (0.49, True, False)]
    + [(math.nan, at_least, False) for at_least in (False, True)],
)
def test_gate_passes_at_its_limit_and_never_on_nan(figure: float, at_least: bool, passed: bool) -> None:
    assert Gate("g", "w", figure, 0.5, at_least).passed is passed


def test_report_has_all_gates_and_its_error_the_failed_ones(tmp_path: Path) -> None:
    drop = "the drop of macro-F1 on dev due to int8"
    passed = Gate("b", "the mean label mass", 0.9, 0.5, at_least=True)
    gates = [Gate("a", drop, 0.034, 0.01), passed]
    with pytest.raises(GateError, match=rf"^{drop} is 0\.034 and must be at most 0\.01$"):
        check_gates(gates)
    check_gates([passed])
    write_gates(tmp_path, gates)
    rows = json.loads((tmp_path / GATES_NAME).read_text(encoding="utf-8"))
    found = [(row["gate"], row["figure"], row["limit"], row["passed"]) for row in rows]
    assert found == [("a", 0.034, 0.01, False), ("b", 0.9, 0.5, True)]


def test_sample_is_evenly_spread_and_deterministic() -> None:
    pairs = make_pairs([0] * 1000)
    found = sample_pairs(pairs, 10)
    assert [pair.id for pair in found] == [f"p{i}" for i in range(0, 1000, 100)]
    assert sample_pairs(pairs[:7], 10) == tuple(pairs[:7])


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return load_checkpoint(make_checkpoint(tmp_path / "checkpoint"))


def test_macro_f1_counts_every_grade(checkpoint: Checkpoint) -> None:
    data = GateData.render(checkpoint, make_pairs([0, 1, 2, 3]))
    assert data.macro_f1(FixedScorer([0, 1, 2, 3])) == pytest.approx(1)
    # One of four right: precision 1/4, recall 1, so F1 0.4 for that grade and 0 for three.
    assert data.macro_f1(FixedScorer([0])) == pytest.approx(0.1)


def test_macro_f1_is_over_the_grades_in_gold(checkpoint: Checkpoint) -> None:
    data = GateData.render(checkpoint, make_pairs([0, 1, 3]))
    assert data.macro_f1(FixedScorer([0, 1, 3])) == pytest.approx(1)


def test_macro_f1_is_none_without_dev_pairs(checkpoint: Checkpoint) -> None:
    data = GateData.render(checkpoint, [])
    assert data.macro_f1(FixedScorer([0])) is None
    gates = list(gate_int8(data, FixedScorer([0]), None, GateLimits()))
    assert [gate.name for gate in gates] == ["int8_probes"]


def test_macro_f1_drop_due_to_int8_is_gated(checkpoint: Checkpoint) -> None:
    data = GateData.render(checkpoint, make_pairs([0, 1, 2, 3]))
    *_, gate = gate_int8(data, FixedScorer([0, 1, 2, 3]), 0.966, GateLimits())
    assert (gate.name, gate.passed) == ("int8_macro_f1", False)
    assert gate.figure == pytest.approx(0.034)
    *_, better = gate_int8(data, FixedScorer([0]), 0.966, GateLimits())
    assert better.passed


@pytest.mark.parametrize(("dtype", "drop"), [("float32", 0.01), ("bfloat16", 0.03)])
def test_vllm_has_the_limits_of_its_dtype(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, dtype: str, drop: float
) -> None:
    scorer = FixedScorer([0, 1, 2, 3], dtype)
    server = "model_export.checkpoint.vllm_server.run_vllm"
    monkeypatch.setattr(server, lambda *_: nullcontext(scorer))
    tolerance = {"float32": 0.001, "bfloat16": 0.1}
    manifest = checkpoint.manifest.model_copy(update={"probe_tolerance": tolerance})
    data = GateData.render(replace(checkpoint, manifest=manifest), make_pairs([0, 1, 2, 3]))
    probes, macro_f1 = gate_vllm(data, 1.0, GateLimits())
    assert probes.limit == tolerance[dtype]
    assert (macro_f1.limit, macro_f1.passed) == (drop, True)


def test_pairs_with_unknown_criteria_are_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(GateError, match=r"have the criteria product-2, which tiny-1 does not have"):
        GateData.render(checkpoint, make_pairs([0], "product-2"))


def test_verify_reports_passed_and_failed_gates(tiny_checkpoint: Path) -> None:
    report = verify(tiny_checkpoint, make_pairs([0, 1, 2, 3]), with_vllm=False)
    found = {gate.name: gate.passed for gate in report}
    # With random weights the probes match, and hardly any probability is on a grade.
    assert found == {"label_mass": False, "transformers_probes": True}


def test_verify_compares_the_stated_macro_f1_on_as_many_pairs(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = copy_with(tiny_checkpoint, tmp_path / "c", dev_metrics={"macro_f1": 0.99, "pairs": 4})
    gates = {gate.name: gate for gate in verify(folder, make_pairs([0, 1, 2, 3]), with_vllm=False)}
    assert not gates["stated_macro_f1"].passed
    fewer = verify(folder, make_pairs([0, 1]), with_vllm=False)
    assert "stated_macro_f1" not in {gate.name for gate in fewer}


def test_verify_refuses_changed_weights(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = copy_with(tiny_checkpoint, tmp_path / "c")
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(CheckpointError, match="is not the manifest's file"):
        verify(folder, with_vllm=False)


def test_verify_fails_probes_of_another_model(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = copy_with(tiny_checkpoint, tmp_path / "c")
    lines = (folder / "probes.jsonl").read_text(encoding="utf-8").split("\n")
    probe = json.loads(lines[0])
    probe["distribution"] = probe["distribution"][::-1]
    (folder / "probes.jsonl").write_text("\n".join([json.dumps(probe), *lines[1:]]), encoding="utf-8")
    gates = {gate.name: gate for gate in verify(folder, with_vllm=False)}
    assert not gates["transformers_probes"].passed


def test_verify_encodes_and_reads_the_vector_probes(tiny_base: Path, tmp_path: Path) -> None:
    spec, folder = make_vector_student(tiny_base, tmp_path / "c")
    write_contract(folder, spec, lambda *_: None)
    [gate] = [gate for gate in verify(folder, with_vllm=False) if gate.name == "transformers_vector_probes"]
    assert gate.passed
    path = folder / VECTOR_PROBES_NAME
    first, *others = path.read_text(encoding="utf-8").split("\n")
    path.write_text(
        "\n".join([json.dumps(json.loads(first) | {"label_mass": 0.5}), *others]), encoding="utf-8"
    )
    gates = {gate.name: gate.passed for gate in verify(folder, with_vllm=False)}
    assert (gates["transformers_probes"], gates["transformers_vector_probes"]) == (True, False)


def copy_with(checkpoint: Path, folder: Path, **changes: Any) -> Path:
    shutil.copytree(checkpoint, folder)
    data = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    write_manifest(folder, sign({**data, **changes}))
    return folder
