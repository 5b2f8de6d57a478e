"""Transformers folders in and out of memory, for the stages."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from model_export.recipe import Precision


def load_model(folder: Path, precision: Precision = "float32") -> PreTrainedModel:
    """The model in this precision, on a GPU where there is one, in evaluation mode."""
    dtype = getattr(torch, precision)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer as transformers sees it: for padding and saving, never for encoding pairs."""
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def speed_up(model: PreTrainedModel, *, compiled: bool) -> None:
    """Make training steps faster; weights and their names stay what they are.

    On a CPU attention is computed plainly: the backward pass of torch's fused one takes 60 ms a layer where this takes 10
    (32 prompts of 120 tokens, two cores). `compiled` fuses each layer's element-wise operations, for all lengths at once.
    """
    if model.device.type == "cpu":
        model.set_attn_implementation("eager")
    if compiled:
        for layer in model.model.layers:
            layer.compile(dynamic=True)


def save_model(
    model: PreTrainedModel, tokenizer: Any, folder: Path, weights: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Float32 weights (the model's own, unless others are given), configuration and tokenizer files."""
    model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)


def keep_first_layers(model: PreTrainedModel, count: int) -> None:
    """Drop all layers above the first `count`. Raises ValueError where there are not that many."""
    if not 1 <= count <= len(model.model.layers):
        raise ValueError(f"it has {len(model.model.layers)} layers, and the first {count} are asked for")
    model.model.layers = model.model.layers[:count]
    model.config.num_hidden_layers = count
    if kinds := getattr(model.config, "layer_types", None):
        model.config.layer_types = kinds[:count]
