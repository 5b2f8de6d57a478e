"""Makes fine-tunes of the tiny base, and adapters extracted from them, as a training run writes them."""

import json
from pathlib import Path
from typing import Any

from model_export.checkpoint.adapter import AdapterDescription, describe_adapter, merge_folder
from model_export.checkpoint.extract_lora import extract_lora
from model_export.checkpoint.model_card import TrainingNotes
from model_export.checkpoint.trained import TrainedVectors
from model_export.checkpoint.writer import CheckpointSpec, write_probes
from model_export.data.criteria import load_criteria
from model_export.data.prompting import PromptForm
from model_export.data.template import find_template
from model_export.models.base_model import load_base, locate_base, save_base
from model_export.pipeline import ADAPTER, CUT
from service.contract.manifest import ENCODER_NAME, Base, Calibration, Limits, Lineage

RANK = 4
ROWS = ([5, 6, 7, 8], [9, 10, 11])  # token ids that a model reads over which an adapter is fitted
NOTES = TrainingNotes(
    data=("made-up pairs, cc0-1.0",),
    recipe="Random changes of rank 4.",
    controls=(("run", "macro-F1"), ("majority", "0.187"), ("student", "0.317")),
    limits=("Knows nothing.",),
)


def make_tuned(base: Path, folder: Path, *, also: str | None = None) -> Path:
    """Make the base with a random rank-4 change in each linear weight, and in the weight that `also` names."""
    import torch

    loaded = load_base(locate_base(str(base)))
    generator = torch.Generator().manual_seed(1)
    for name, weight in loaded.model.named_parameters():
        if name.endswith("proj.weight"):
            left = torch.randn(weight.shape[0], RANK, generator=generator)
            weight.data += 0.02 * left @ torch.randn(RANK, weight.shape[1], generator=generator)
        elif name == also:
            weight.data += 0.5
    save_base(loaded, folder)
    return folder


def describe(**changes: Any) -> AdapterDescription:
    """Return a complete configuration of an adapter to the tiny base; `changes` replace its keys."""
    whole: dict[str, Any] = {
        "name": "tiny-student",
        "base": "tiny-base",
        "rank": RANK,
        "energy_kept": 1.0,
        "template": "query-first-1",
        "criteria": (load_criteria("general-1"),),
        "limits": Limits(max_query_tokens=64, max_note_tokens=64),
        "calibration": Calibration(name="temperature-1", method="temperature", temperature=1.5),
        "lineage": Lineage(recipe_hash="sha256:" + "a" * 64, code_version="0.0.9"),
        "dev_metrics": {"macro_f1": 0.317},
        "training": NOTES,
    }
    return AdapterDescription.model_validate({**whole, **changes})


def make_adapter(base: Path, folder: Path, /, **changes: Any) -> Path:
    """Make a complete adapter folder for the tiny base."""
    description = describe(**changes)
    tuned, merged = (folder.with_name(f"{folder.name}-{name}") for name in ("tuned", "merged"))
    extract_lora(str(base), make_tuned(base, tuned), folder, RANK, ROWS)
    merge_folder(str(base), folder, merged)
    form = PromptForm(find_template(description.template), description.criteria, description.limits)
    write_probes(merged, form, folder, lambda *_: None)
    describe_adapter(folder, description)
    return folder


def make_cut(base: Path, tuned: Path, folder: Path) -> Path:
    """Write what a run's stage `cut` writes: base and adapter merged, and the adapter."""
    energy = extract_lora(str(base), tuned, folder / ADAPTER, RANK, ROWS)
    (folder / CUT).write_text(json.dumps({"energy_kept": energy}), encoding="utf-8")
    merge_folder(str(base), folder / ADAPTER, folder)
    return folder


def make_vector_student(base: Path, folder: Path) -> tuple[CheckpointSpec, Path]:
    """Make a student with an encoder, which the real engine and encoder can load, and the spec of its checkpoint."""
    tuned = make_tuned(base, folder.with_name(f"{folder.name}-tuned"))
    make_cut(base, tuned, folder)
    make_cut(base, tuned, folder / ENCODER_NAME)
    described = describe(vectors=TrainedVectors(per_note=4, max_note_tokens=128, block=32))
    return spec_of(described), folder


def spec_of(described: AdapterDescription) -> CheckpointSpec:
    """Return the spec of a checkpoint with these fields."""
    return CheckpointSpec(
        **described.shared(),
        name="tiny-student",
        base=Base(name="tiny-base", licence="cc0-1.0", source="made by a test"),
        template=find_template(described.template),
    )
