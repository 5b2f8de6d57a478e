"""A run's adapter is assembled to the checkpoint that the run exports, with the probes that the run made."""

from pathlib import Path

import pytest

from model_export.checkpoint.assemble import Plan, assemble
from model_export.checkpoint.writer import write_contract
from model_export.outputs import write_adapter
from service.contract.checkpoint import load_checkpoint
from service.contract.probes import PROBES_NAME, VECTOR_PROBES_NAME
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
