import dataclasses
import json
from pathlib import Path

import pytest
import torch

from model_export.checkpoint.export import ExportPlan, export
from model_export.checkpoint.gates import GATES_NAME, GateError, GateLimits
from model_export.checkpoint.writer import CheckpointSpec
from model_export.data.criteria import load_criteria
from model_export.data.pairs import Pair
from model_export.data.template import find_template
from service.contract.checkpoint import load_checkpoint
from service.contract.manifest import Base, Lineage
from service.contract.prompt import Note
from tests.tiny_adapter import NOTES, make_tuned

# A model with random weights puts hardly any probability on a grade and grades by chance.
LOOSE = GateLimits(label_mass=0.0, macro_f1_drop=1.0)


@pytest.fixture(scope="module")
def plan(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportPlan:
    spec = CheckpointSpec(
        name="tiny-student",
        base=Base(name="tiny-base", licence="cc0-1.0", source="made by a test"),
        template=find_template("note-first-1"),
        criteria=(load_criteria("general-1"),),
        lineage=Lineage(code_version="0"),
        training=NOTES,
    )
    dev = [
        Pair(f"p{i}", f"query {i}", Note("", f"note {i}"), i % 4, "made-up", "general-1") for i in range(8)
    ]
    trained = make_tuned(tiny_base, tmp_path_factory.mktemp("trained") / "trained")
    return ExportPlan(trained, spec, dev, LOOSE, with_vllm=False)


@pytest.fixture(scope="module")
def int8_plan(plan: ExportPlan) -> ExportPlan:
    return dataclasses.replace(plan, spec=plan.spec.model_copy(update={"quantization": "w8a8"}))


def test_export_writes_a_checkpoint_with_gates_and_card(plan: ExportPlan, tmp_path: Path) -> None:
    gates = export(plan, tmp_path / "out")
    manifest = load_checkpoint(tmp_path / "out").manifest
    assert (manifest.name, manifest.quantization) == ("tiny-student", None)
    rows = json.loads((tmp_path / "out" / GATES_NAME).read_text(encoding="utf-8"))
    assert [row["gate"] for row in rows] == [gate.name for gate in gates] == ["label_mass"]
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "## Export gates" in card
    assert manifest.fingerprint in card


def test_int8_is_compared_with_full_precision(int8_plan: ExportPlan, tmp_path: Path) -> None:
    gates = export(int8_plan, tmp_path / "out")
    manifest = load_checkpoint(tmp_path / "out").manifest
    assert manifest.quantization == "w8a8"
    export(int8_plan, tmp_path / "again")
    assert load_checkpoint(tmp_path / "again").manifest.fingerprint == manifest.fingerprint
    by_name = {gate.name: gate for gate in gates}
    assert set(by_name) == {"label_mass", "int8_probes", "int8_macro_f1"}
    assert 0 < by_name["int8_probes"].figure <= LOOSE.int8_probe_difference
    assert [path for path in (tmp_path / "out").iterdir() if path.stat().st_mode & 0o444 != 0o444] == []


def test_failed_gate_reports_the_figure_and_writes_nothing(int8_plan: ExportPlan, tmp_path: Path) -> None:
    strict = dataclasses.replace(LOOSE, int8_probe_difference=1e-6)
    with pytest.raises(
        GateError, match=r"change of a probe due to int8 is 0\.\d+ and must be at most 1e-06$"
    ):
        export(dataclasses.replace(int8_plan, limits=strict), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_label_mass_of_a_random_model_fails_its_gate(plan: ExportPlan, tmp_path: Path) -> None:
    with pytest.raises(GateError, match=r"label mass on probes is .* and must be at least 0\.5$"):
        export(dataclasses.replace(plan, limits=GateLimits()), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.engine
@pytest.mark.slow
def test_vllm_agrees_with_an_int8_checkpoint(int8_plan: ExportPlan, tmp_path: Path) -> None:
    gates = export(dataclasses.replace(int8_plan, with_vllm=True), tmp_path / "out")
    by_name = {gate.name: gate for gate in gates}
    assert {"vllm_probes", "vllm_macro_f1"} < set(by_name)
    # Sums of 8-bit products may saturate on a processor without VNNI; measured on AVX2: 0.044.
    # https://uxlfoundation.github.io/oneDNN/dev_guide_int8_computations.html
    has_vnni = any(torch.cpu.get_capabilities().get(unit) for unit in ("avx_vnni", "avx512_vnni", "amx_int8"))
    assert by_name["vllm_probes"].figure <= (0.02 if has_vnni else 0.1)
