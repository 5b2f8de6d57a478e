"""Transformers folders in and out of memory, for the stages."""

from collections.abc import Mapping, Sequence
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


def average_weights(first: Path, second: Path, share: float, out: Path) -> None:
    """Write the model whose weights are the first's and the second's mean, in which the second has this share, in [0, 1].

    Both are fine-tunes of one base. Source: WiSE-FT, arXiv 2109.01903.
    """
    model, other = load_model(first), load_model(second).state_dict()
    for name, weight in model.named_parameters():
        weight.data.lerp_(other[name], share)
    save_model(model, load_tokenizer(first), out)


def keep_layers(model: PreTrainedModel, count: int) -> None:
    """Drop all but `count` layers, evenly spaced, the first and the last among those that stay."""
    if count >= len(model.model.layers):
        return
    last = len(model.model.layers) - 1
    _keep(model, [round(index * last / max(count - 1, 1)) for index in range(count)])


def keep_first_layers(model: PreTrainedModel, count: int) -> None:
    """Drop all layers above the first `count`. Raises ValueError where there are not that many."""
    if not 1 <= count <= len(model.model.layers):
        raise ValueError(f"it has {len(model.model.layers)} layers, and the first {count} are asked for")
    _keep(model, range(count))


def _keep(model: PreTrainedModel, kept: Sequence[int]) -> None:
    layers = model.model.layers
    model.model.layers = type(layers)(layers[index] for index in kept)
    for index, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = index  # where its keys and values are cached
    model.config.num_hidden_layers = len(kept)
    if kinds := getattr(model.config, "layer_types", None):
        model.config.layer_types = [kinds[index] for index in kept]
