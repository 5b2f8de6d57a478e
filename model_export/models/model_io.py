"""Loads and saves transformers folders for the stages."""

import gc
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from model_export.models.cpu_memory import keep_freed_memory
from model_export.models.packing import PACKED_ATTENTION
from model_export.recipe import Precision
from service.contract.vllm_settings import multiplies_bfloat16

# Compiled versions of a layer: all layers share their code, and frozen, learning and LoRA layers need one each, with and without
# a shared prefix and gradients. Beyond torch's 8 a layer silently runs as it was.
_VERSIONS = 64


def load_model(folder: Path, precision: Precision = "float32") -> PreTrainedModel:
    """Load the model in this precision, on a GPU if there is one, in evaluation mode."""
    dtype = getattr(torch, precision)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def is_emulated(precision: Precision) -> bool:
    """Return whether this machine has no unit for the precision, so that float32 is faster."""
    has_unit = torch.cuda.is_available() or multiplies_bfloat16(torch.cpu.get_capabilities())
    return precision == "bfloat16" and not has_unit


def free_gpu_memory() -> None:
    """Return the memory of models that nothing refers to, so that another process can use it; nothing without a GPU."""
    gc.collect()  # a model is part of reference cycles
    torch.cuda.empty_cache()


def load_tokenizer(folder: Path) -> Any:
    """Load transformers' tokenizer, for padding and saving. Pairs are encoded by the contract's tokenizer only."""
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def speed_up(model: PreTrainedModel, *, compiled: bool) -> None:
    """Make training steps and generation faster without changing weights or their names.

    Batches may be packed then. `compiled` fuses each layer's element-wise operations, with one compilation for
    all lengths. On a CPU the process keeps freed memory.
    """
    model.set_attn_implementation(PACKED_ATTENTION)
    if model.device.type == "cpu":
        keep_freed_memory()
    if compiled:
        for layer in model.model.layers:
            layer.compile(dynamic=True, recompile_limit=_VERSIONS)


def keep_first_layers(model: PreTrainedModel, count: int) -> None:
    """Drop all layers above the first `count`. Raises ValueError where the model has fewer."""
    if not 1 <= count <= len(model.model.layers):
        raise ValueError(f"it has {len(model.model.layers)} layers, so the first {count} can't be kept")
    model.model.layers = model.model.layers[:count]
    model.config.num_hidden_layers = count
    if kinds := getattr(model.config, "layer_types", None):
        model.config.layer_types = kinds[:count]
