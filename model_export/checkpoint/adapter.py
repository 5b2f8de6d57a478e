"""A fine-tuned model, small enough to be carried in a repository: its difference to the base, cut to a low rank.

Training changes every linear weight in full. The difference is cut to a low rank (model_export/checkpoint/cut.py) and stored as a LoRA
adapter in PEFT's format (alpha = rank, so that W + B A is the merged weight), which peft and vLLM load as well. Beside it
`adapter.json` says how the model is to be asked. What is evaluated and exported is the merged model, never the full one: what
the cut costs is then in the figures.
Source: arXiv 2106.09685 (LoRA); that a full fine-tune's difference survives the cut was measured here first.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model_export.checkpoint.model_card import TrainingNotes
from model_export.models.base_model import LoadedBase, load_base, locate_base, save_base
from service.contract.manifest import (
    Calibration,
    Criteria,
    Decision,
    FileName,
    Limits,
    Lineage,
    Name,
    Sha256,
    hash_file,
)
from service.contract.validation import one_line
from service.errors import NotegradeError

if TYPE_CHECKING:
    import torch

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"
DESCRIPTION_NAME = "adapter.json"
_DEFAULT_FOLDER = Path(__file__).parent / "adapters" / "default"
LINEAR = "proj.weight"
_PREFIX = "base_model.model."

# (B, A) by the name of the linear weight: (out, rank) and (rank, in).
Factors = Mapping[str, "tuple[torch.Tensor, torch.Tensor]"]


class AdapterError(NotegradeError):
    """An adapter that can't be cut, read, or merged into this base."""


class AdapterDescription(BaseModel):
    """The whole of `adapter.json`: of what model the adapter makes what, and how the result is asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    name: Name
    base: str = Field(description="name of the base model, as the checkpoint's manifest states it")
    rank: int = Field(ge=1)
    energy_kept: float = Field(ge=0, le=1, description="see CutReport")
    template: Name
    criteria: tuple[Criteria, ...] = Field(min_length=1)
    limits: Limits
    calibration: Calibration
    decisions: tuple[Decision, ...] = ()
    lineage: Lineage
    dev_metrics: dict[str, float] = Field(default_factory=dict)
    training: TrainingNotes
    files: dict[FileName, Sha256] = Field(default_factory=dict, description="hashes of the adapter's files")


def default_adapter() -> Path | None:
    """The folder of the adapter that comes with the package for the default base, if there is one."""
    return _DEFAULT_FOLDER if (_DEFAULT_FOLDER / DESCRIPTION_NAME).is_file() else None


def write_factors(folder: Path, factors: Factors, rank: int, *, base: str) -> None:
    """Write a LoRA adapter as PEFT does: `adapter_model.safetensors` and `adapter_config.json`."""
    from safetensors.torch import save_file

    tensors = {}
    for name, (b, a) in sorted(factors.items()):
        module = _PREFIX + name.removesuffix(".weight")
        tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"] = (
            a.contiguous(),
            b.contiguous(),
        )
    save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({name.split(".")[-2] for name in factors}),
        "inference_mode": True,
    }
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def describe_adapter(folder: Path, description: AdapterDescription) -> None:
    """Add `adapter.json` to what `cut` wrote, with the hashes of its files."""
    files = {name: hash_file(folder / name) for name in (CONFIG_NAME, WEIGHTS_NAME)}
    whole = description.model_copy(update={"files": files})
    (folder / DESCRIPTION_NAME).write_text(whole.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_description(folder: Path) -> AdapterDescription:
    """The description of an adapter folder, its files checked against their hashes. Raises AdapterError."""
    path = folder / DESCRIPTION_NAME
    try:
        description = AdapterDescription.model_validate_json(path.read_bytes())
        found = {name: hash_file(folder / name) for name in (CONFIG_NAME, WEIGHTS_NAME)}
    except ValidationError as error:
        raise AdapterError(f"{path} is not valid: {one_line(error, 'adapter')}") from error
    except OSError as error:
        raise AdapterError(f"{folder} is no whole adapter: {error.filename} can't be read") from error
    for name, expected in found.items():
        if description.files.get(name) != expected:
            raise AdapterError(
                f"{folder / name} is not the file that {DESCRIPTION_NAME} describes: fetch it again"
            )
    return description


def read_factors(folder: Path) -> Factors:
    """The factors that `write_factors` wrote. Raises AdapterError for an adapter of another kind."""
    from safetensors.torch import load_file

    config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    if config["lora_alpha"] != config["r"]:
        raise AdapterError(
            f"{folder / CONFIG_NAME} scales by alpha / rank, which only adapters made elsewhere do"
        )
    tensors = load_file(folder / WEIGHTS_NAME)
    modules = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
    return {
        f"{module.removeprefix(_PREFIX)}.weight": (
            tensors[f"{module}.lora_B.weight"],
            tensors[f"{module}.lora_A.weight"],
        )
        for module in modules
    }


def merge(loaded: LoadedBase, factors: Factors) -> None:
    """Add B A to the base's linear weights, in place, in float32. Raises AdapterError where they don't fit."""
    weights = dict(loaded.model.named_parameters())
    for name, (b, a) in factors.items():
        expected = (b.shape[0], a.shape[1])
        if name not in weights or tuple(weights[name].shape) != expected:
            raise AdapterError(
                f"the adapter does not fit the base {loaded.base.name}: it has no {name} of {expected[0]} x {expected[1]}"
            )
    for name, (b, a) in factors.items():
        weights[name].data += (b.float() @ a.float()).to(weights[name].dtype)


def merge_folder(base: str, adapter: Path, out: Path) -> None:
    """Write base and adapter together as a plain transformers folder: the model to evaluate, and to export."""
    loaded = load_base(locate_base(base))
    merge(loaded, read_factors(adapter))
    out.mkdir(parents=True, exist_ok=True)
    save_base(loaded, out)
