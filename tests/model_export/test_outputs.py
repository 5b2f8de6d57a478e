"""A run's adapter is assembled to the checkpoint that the run exports, with the probes that the run made."""

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from model_export.checkpoint.adapter import (
    DESCRIPTION_NAME,
    WEIGHTS_NAME,
    AdapterDescription,
    describe_adapter,
)
from model_export.checkpoint.assemble import Plan, PlanError, assemble
from model_export.checkpoint.writer import write_contract
from model_export.outputs import write_adapter
from service.contract.checkpoint import load_checkpoint
from service.contract.manifest import ENCODER_NAME
from service.contract.probes import PROBES_NAME, VECTOR_PROBES_NAME
from service.errors import ProbeMismatchError
from tests.tiny_adapter import RANK, describe, make_cut, make_tuned, make_vector_student, spec_of


@pytest.mark.parametrize("with_vectors", [False, True])
def test_adapter_is_assembled_to_the_exported_checkpoint_with_its_probes(
    tiny_base: Path, tmp_path: Path, with_vectors: bool
) -> None:
    student, out = tmp_path / "student", tmp_path / "out"
    if with_vectors:
        spec, _ = make_vector_student(tiny_base, student)
    else:
        make_cut(tiny_base, make_tuned(tiny_base, tmp_path / "tuned"), student)
        spec = spec_of(describe())
    gemma = spec.model_copy(update={"base": spec.base.model_copy(update={"licence": "gemma"})})
    write_adapter(gemma, student, out, RANK, lambda *_: None)
    assert "Gemma Terms of Use" in (out / "NOTICE").read_text(encoding="utf-8")
    exported = write_contract(student, spec, lambda *_: None)
    assembled = load_checkpoint(assemble(Plan(str(tiny_base), adapter=out), tmp_path / "assembled"))
    assert assembled.manifest.fingerprint == exported.manifest.fingerprint
    assert assembled.manifest.grading_version == exported.manifest.grading_version
    assert bool(assembled.vectors) == with_vectors
    for name in (PROBES_NAME, VECTOR_PROBES_NAME) if with_vectors else (PROBES_NAME,):
        assert len({(folder / name).read_bytes() for folder in (out, student, assembled.folder)}) == 1


@pytest.fixture
def reading_vectors(tiny_base: Path, tmp_path: Path) -> Path:
    """Write the adapter of a student that reads note vectors."""
    spec, student = make_vector_student(tiny_base, tmp_path / "student")
    write_adapter(spec, student, tmp_path / "adapter", RANK, lambda *_: None)
    return tmp_path / "adapter"


def test_an_adapter_whose_encoder_does_not_reproduce_the_vector_probes_is_refused(
    tiny_base: Path, reading_vectors: Path, tmp_path: Path
) -> None:
    weights = reading_vectors / ENCODER_NAME / WEIGHTS_NAME
    save_file({name: 3 * each for name, each in load_file(weights).items()}, weights)
    described = (reading_vectors / DESCRIPTION_NAME).read_text(encoding="utf-8")
    describe_adapter(reading_vectors, AdapterDescription.model_validate_json(described))
    with pytest.raises(ProbeMismatchError, match="probes differ by more than"):
        assemble(Plan(str(tiny_base), adapter=reading_vectors), tmp_path / "out")


def test_note_vectors_are_not_read_by_int8_weights(
    tiny_base: Path, reading_vectors: Path, tmp_path: Path
) -> None:
    with pytest.raises(PlanError, match="note vectors, which int8 weights can't"):
        assemble(Plan(str(tiny_base), adapter=reading_vectors, int8=True), tmp_path / "out")
