from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from model_export.estimates import Batch, Training, inference_memory
from model_export.models.model_shape import Shape
from model_export.recipe import LaunchConfig

SHAPE = Shape(
    parameters=1000,
    linear=800,
    layers=4,
    hidden=10,
    intermediate=30,
    key_value=5,
    vocabulary=100,
    source="a test",
)
TRAINING = Training(SHAPE, learning=800, batch=Batch(2, 8, 3), bfloat16=True)
LAYER = 8 * 10 * 4 + (2 * 5 + 4 * 30) * 2


def test_states_are_float32_and_adam_s_moments_twice_that() -> None:
    memory = TRAINING.memory(LaunchConfig())
    assert (memory.gradients, memory.adam) == (4 * 800, 8 * 800)
    # Bfloat16 casts copies of them.
    assert memory.weights == 4 * 1000 + 2 * 800


def test_activations_follow_tokens_and_logits_what_is_predicted() -> None:
    memory = TRAINING.memory(LaunchConfig())
    assert memory.activations == 2 * 8 * 4 * LAYER
    assert memory.logits == 2 * 3 * 100 * 12
    assert memory.peak == memory.weights + memory.gradients + memory.adam + memory.activations + memory.logits


def test_processes_share_states_with_fsdp_alone() -> None:
    alone, together = (TRAINING.memory(LaunchConfig(processes=4, fsdp=fsdp)) for fsdp in (False, True))
    assert (together.weights, together.adam) == (4 * 1000 / 4, alone.adam / 4)
    assert alone.weights == TRAINING.memory(LaunchConfig()).weights
    assert together.activations == 2 * 8 * (4 * 10 * 4 + LAYER)
    assert together.logits == alone.logits


def test_rollouts_are_gone_when_activations_are_there() -> None:
    generating = Training(SHAPE, 800, Batch(2, 8, 3), bfloat16=False, generates=True, reference=True)
    memory = generating.memory(LaunchConfig())
    assert memory.key_value_cache == 2 * 8 * 2 * 5 * 4 * 4
    assert memory.weights == 2 * 4 * 1000
    passing = max(memory.key_value_cache, memory.activations + memory.logits)
    assert memory.peak == memory.weights + memory.gradients + memory.adam + passing


@pytest.mark.parametrize(
    ("predicted", "parts"), [(1, ["weights", "logits"]), (3, ["weights", "logits", "KV cache"])]
)
def test_inference_caches_only_what_it_goes_on_from(predicted: int, parts: list[str]) -> None:
    assert [name for name, _ in inference_memory(SHAPE, Batch(2, 8, predicted)).parts()] == parts


@pytest.mark.parametrize("bfloat16", [False, True])
def test_activations_are_what_torch_keeps(bfloat16: bool) -> None:
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=100,
    )
    shape = replace(SHAPE, layers=4, hidden=64, intermediate=192, key_value=32)
    training = Training(shape, 0, Batch(4, 100, 1), bfloat16)
    kept = bytes_kept(LlamaForCausalLM(config), 4, 100, bfloat16)
    assert training.memory(LaunchConfig()).activations == pytest.approx(kept, rel=0.2)


def bytes_kept(model: torch.nn.Module, sequences: int, length: int, bfloat16: bool) -> int:
    """Of all that is saved for the backward pass but weights, as they are or cast; shared storage counts once."""
    shapes = {tuple(weight.shape) for weight in model.parameters()}
    shapes |= {shape[::-1] for shape in shapes}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tuple(tensor.shape) not in shapes:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.zeros(sequences, length, dtype=torch.long)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bfloat16),
    ):
        model(input_ids=ids, logits_to_keep=1, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
