"""A run's adapter is assembled to the checkpoint that the run exports, with the probes that the run made."""

import json
from pathlib import Path

import pytest

from model_export.checkpoint.adapter import merge_folder
from model_export.checkpoint.assemble import Plan, assemble
from model_export.checkpoint.extract_lora import extract_lora
from model_export.checkpoint.trained import TrainedVectors
from model_export.checkpoint.writer import CheckpointSpec, write_contract
from model_export.data.template import find_template
from model_export.outputs import write_adapter
from model_export.pipeline import ADAPTER, CUT
from service.contract.checkpoint import load_checkpoint
from service.contract.manifest import ENCODER_NAME, Base
from service.contract.probes import PROBES_NAME, VECTOR_PROBES_NAME
from tests.tiny_adapter import RANK, ROWS, describe, make_tuned


def cut(base: Path, tuned: Path, folder: Path) -> None:
    """Write what the stage `cut` writes."""
    energy = extract_lora(str(base), tuned, folder / ADAPTER, RANK, ROWS)
    (folder / CUT).write_text(json.dumps({"energy_kept": energy}), encoding="utf-8")
    merge_folder(str(base), folder / ADAPTER, folder)


@pytest.mark.parametrize("vectors", [None, TrainedVectors(per_note=2, max_note_tokens=90, block=8)])
def test_adapter_is_assembled_to_the_exported_checkpoint_with_its_probes(
    tiny_base: Path, tmp_path: Path, vectors: TrainedVectors | None
) -> None:
    student, out = tmp_path / "student", tmp_path / "out"
    tuned = make_tuned(tiny_base, tmp_path / "tuned")
    cut(tiny_base, tuned, student)
    if vectors:
        cut(tiny_base, tuned, student / ENCODER_NAME)
    described = describe(vectors=vectors)
    spec = CheckpointSpec(
        **described.shared(),
        name="tiny-student",
        base=Base(name="tiny-base", licence="cc0-1.0", source="made by a test"),
        template=find_template(described.template),
    )
    write_adapter(spec, student, out, RANK, lambda *_: None)
    exported = write_contract(student, spec, lambda *_: None)
    assembled = load_checkpoint(assemble(Plan(str(tiny_base), adapter=out), tmp_path / "assembled"))
    assert assembled.manifest.fingerprint == exported.manifest.fingerprint
    assert assembled.manifest.grading_version == exported.manifest.grading_version
    assert bool(assembled.vectors) == bool(vectors)
    for name in (PROBES_NAME, VECTOR_PROBES_NAME) if vectors else (PROBES_NAME,):
        assert len({(folder / name).read_bytes() for folder in (out, student, assembled.folder)}) == 1
