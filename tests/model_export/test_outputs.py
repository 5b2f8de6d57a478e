"""A run's adapter is assembled to the checkpoint that the run exports, with the probes that the run made."""

import json
from pathlib import Path

from model_export.checkpoint.adapter import merge_folder
from model_export.checkpoint.assemble import Plan, assemble
from model_export.checkpoint.extract_lora import extract_lora
from model_export.checkpoint.writer import CheckpointSpec, write_contract
from model_export.data.template import find_template
from model_export.outputs import write_adapter
from model_export.pipeline import ADAPTER, CUT
from service.contract.checkpoint import load_checkpoint
from service.contract.manifest import Base
from service.contract.probes import PROBES_NAME
from tests.tiny_adapter import RANK, ROWS, describe, make_tuned


def test_adapter_is_assembled_to_the_exported_checkpoint_with_its_probes(
    tiny_base: Path, tmp_path: Path
) -> None:
    student, out = tmp_path / "student", tmp_path / "out"
    energy = extract_lora(
        str(tiny_base), make_tuned(tiny_base, tmp_path / "tuned"), student / ADAPTER, RANK, ROWS
    )
    (student / CUT).write_text(json.dumps({"energy_kept": energy}), encoding="utf-8")
    merge_folder(str(tiny_base), student / ADAPTER, student)
    described = describe()
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
    probes = [(folder / PROBES_NAME).read_bytes() for folder in (out, student, assembled.folder)]
    assert len(set(probes)) == 1
