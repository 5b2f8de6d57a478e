from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from model_export.training.frozen_outputs import cache_frozen_activations, run_layers
from tests.tiny_base import make_micro_model

ROWS = [[1, 2, 3, 4, 5], [6, 7], [8, 9, 10]]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make_micro_model(layers=3)


@pytest.fixture
def outputs(model: PreTrainedModel, tmp_path: Path) -> Sequence[torch.Tensor]:
    seen: list[tuple[int, int]] = []
    found = cache_frozen_activations(model, 2, ROWS, tmp_path / "outputs.bin", lambda *at: seen.append(at))
    assert seen == [(3, 3)]
    return found


def test_cached_activations_equal_those_of_the_lower_layers(
    model: PreTrainedModel, outputs: Sequence[torch.Tensor]
) -> None:
    with torch.inference_mode():
        for row, found in zip(ROWS, outputs, strict=True):
            whole = model(torch.tensor([row]), output_hidden_states=True).hidden_states[2][0]
            assert found.shape == whole.shape == (len(row), 32)
            # bfloat16 has 8 bits of mantissa.
            assert torch.allclose(found.float(), whole, rtol=0.02, atol=0.02)


def test_upper_layers_give_the_whole_model_s_output(
    model: PreTrainedModel, outputs: Sequence[torch.Tensor]
) -> None:
    with torch.inference_mode():
        whole = model(torch.tensor([ROWS[0]])).logits
        with run_layers(model, slice(2, None)):
            assert len(model.model.layers) == 1
            upper = model(inputs_embeds=outputs[0].float().unsqueeze(0)).logits
    assert len(model.model.layers) == 3
    assert torch.allclose(upper, whole, atol=0.03)
