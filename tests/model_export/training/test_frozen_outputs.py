from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from model_export.training.frozen_outputs import FrozenOutputs, cache_frozen_activations, layers_above

ROWS = [[1, 2, 3, 4, 5], [6, 7], [8, 9, 10]]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=32,
        initializer_range=0.1,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def outputs(model: PreTrainedModel, tmp_path: Path) -> FrozenOutputs:
    seen: list[tuple[int, int]] = []
    found = cache_frozen_activations(model, 2, ROWS, tmp_path / "outputs.bin", lambda *at: seen.append(at))
    assert seen == [(3, 3)]
    return found


def test_cached_activations_equal_those_of_the_lower_layers(
    model: PreTrainedModel, outputs: FrozenOutputs
) -> None:
    with torch.inference_mode():
        for number, row in enumerate(ROWS):
            whole = model(torch.tensor([row]), output_hidden_states=True).hidden_states[2][0]
            assert outputs[number].shape == whole.shape == (len(row), 32)
            # bfloat16 has 8 bits of mantissa.
            assert torch.allclose(outputs[number], whole, rtol=0.02, atol=0.02)


def test_layers_above_give_the_whole_model_s_output(model: PreTrainedModel, outputs: FrozenOutputs) -> None:
    with torch.inference_mode():
        whole = model(torch.tensor([ROWS[0]])).logits
        with layers_above(model, 2):
            assert len(model.model.layers) == 1
            upper = model(inputs_embeds=outputs[0].unsqueeze(0)).logits
    assert len(model.model.layers) == 3
    assert torch.allclose(upper, whole, atol=0.03)


def test_padding_is_zeros_on_both_sides(outputs: FrozenOutputs) -> None:
    batch = outputs.padded([1, 2], lefts=[3, 1], width=6)
    assert batch.shape == (2, 6, 32)
    assert batch[0, 3:5].equal(outputs[1])
    assert not batch[0, :3].any()
    assert not batch[0, 5:].any()
    assert batch[1, 1:4].equal(outputs[2])
