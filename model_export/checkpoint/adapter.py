"""Reads, writes and merges LoRA adapters, which make a fine-tuned model small enough for a repository.

`extract_lora` factors the difference that training made to the linear weights, and this module stores the factors in PEFT's
format (alpha = rank, so the merged weight is W + B A), which peft and vLLM load as well.
`adapter.json` beside it holds the prompt template, criteria, limits and calibration, and `probes.jsonl` the probes of the
merged model, made by the trainer. We evaluate and export the merged model, never the student before it was factored, so every
reported figure includes the cost of an approximation.
The merge is ours, because `make serve` assembles the default checkpoint with the serving lock, which has no peft;
a test compares it with peft's.
Source: arXiv 2106.09685 (LoRA).
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, ValidationError
from safetensors.torch import load_file, save_file

from model_export.checkpoint.model_card import TrainingNotes
from model_export.checkpoint.trained import Trained
from model_export.models.base_model import LoadedBase, load_base, locate_base, save_base
from service.contract.manifest import ENCODER_NAME, FileName, Sha256, hash_file
from service.contract.probes import PROBES_NAME, VECTOR_PROBES_NAME
from service.contract.template import Name
from service.contract.validation import one_line
from service.errors import NotegradeError

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"
DESCRIPTION_NAME = "adapter.json"
# The packaged adapter for the default base.
DEFAULT_ADAPTER = Path(__file__).parent / "adapters" / "default"
LINEAR = "proj.weight"
_PREFIX = "base_model.model."

_HASHED = (CONFIG_NAME, WEIGHTS_NAME, PROBES_NAME)

# Maps the name of a linear weight to its (B, A), of shapes (out, rank) and (rank, in).
Factors = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


class AdapterError(NotegradeError):
    """An adapter can't be extracted, read or merged into this base."""


class AdapterDescription(Trained):
    """The content of `adapter.json`: the base, and everything but the weights that the checkpoint needs."""

    format_version: Literal[1] = 1
    name: Name
    base: str = Field(description="name of the base model, as in the checkpoint's manifest")
    rank: int = Field(ge=1)
    energy_kept: float = Field(ge=0, le=1, description="see extract_lora.factor_differences")
    template: Name
    training: TrainingNotes
    files: dict[FileName, Sha256] = Field(default_factory=dict, description="hashes of the adapter files")


def write_factors(folder: Path, factors: Factors, rank: int, *, base: str) -> None:
    """Write a LoRA adapter in PEFT's format: `adapter_model.safetensors` and `adapter_config.json`."""
    tensors = {}
    for name, (b, a) in sorted(factors.items()):
        module = _PREFIX + name.removesuffix(".weight")
        tensors[f"{module}.lora_A.weight"] = a.contiguous()
        tensors[f"{module}.lora_B.weight"] = b.contiguous()
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
    """Write `adapter.json` beside the files of `extract_lora` and `write_probes`, with their hashes."""
    files = {name: hash_file(folder / name) for name in _hashed(description)}
    with_hashes = description.model_copy(update={"files": files})
    (folder / DESCRIPTION_NAME).write_text(with_hashes.model_dump_json(indent=2) + "\n", encoding="utf-8")


def note_test_figures(folder: Path, rows: Iterable[tuple[str, ...]]) -> None:
    """Replace the test figures in the adapter's notes, from which `assemble` makes the model card."""
    description = read_description(folder)
    training = description.training.model_copy(update={"test": tuple(rows)})
    describe_adapter(folder, description.model_copy(update={"training": training}))


def check_is_of(folder: Path, checkpoint: str) -> None:
    """Raise AdapterError unless the folder is the adapter of this checkpoint."""
    if (name := read_description(folder).name) != checkpoint:
        raise AdapterError(f"{folder} is the adapter of {name}, not of {checkpoint}")


def read_description(folder: Path) -> AdapterDescription:
    """Read `adapter.json` and check the adapter's files against its hashes. Raises AdapterError."""
    path = folder / DESCRIPTION_NAME
    try:
        description = AdapterDescription.model_validate_json(path.read_bytes())
        found = {name: hash_file(folder / name) for name in _hashed(description)}
    except ValidationError as error:
        raise AdapterError(f"{path} is not valid: {one_line(error, 'adapter')}") from error
    except OSError as error:
        raise AdapterError(
            f"{folder} is an incomplete adapter: {error.filename} can't be read (`notegrade-train run` writes all its files)"
        ) from error
    for name, expected in found.items():
        if description.files.get(name) != expected:
            raise AdapterError(
                f"the hash of {folder / name} differs from the one in {DESCRIPTION_NAME}: fetch the file again"
            )
    return description


def _hashed(description: AdapterDescription) -> tuple[str, ...]:
    if description.vectors is None:
        return _HASHED
    encoder = (f"{ENCODER_NAME}/{CONFIG_NAME}", f"{ENCODER_NAME}/{WEIGHTS_NAME}")
    return (*_HASHED, VECTOR_PROBES_NAME, *encoder)


def read_factors(folder: Path) -> Factors:
    """Read the factors that `write_factors` wrote. Raises AdapterError when alpha and rank differ."""
    config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    if config["lora_alpha"] != config["r"]:
        raise AdapterError(
            f"{folder / CONFIG_NAME} has lora_alpha {config['lora_alpha']} and r {config['r']}: only adapters with equal values are supported"
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
    """Add B A to the base's linear weights, in place and in float32. Raises AdapterError for a missing weight or another shape."""
    weights = dict(loaded.model.named_parameters())
    for name, (b, a) in factors.items():
        expected = (b.shape[0], a.shape[1])
        if name not in weights or tuple(weights[name].shape) != expected:
            raise AdapterError(
                f"the adapter does not fit the base {loaded.base.name}, which has no {name} of {expected[0]} x {expected[1]}"
            )
    for name, (b, a) in factors.items():
        weights[name].data += (b.float() @ a.float()).to(weights[name].dtype)


def merge_folder(base: str, adapter: Path, out: Path) -> None:
    """Write base and adapter, merged, as a plain transformers folder."""
    loaded = load_base(locate_base(base))
    merge(loaded, read_factors(adapter))
    out.mkdir(parents=True, exist_ok=True)
    save_base(loaded, out)
