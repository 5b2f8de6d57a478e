from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedModel

from model_export.models.model_io import speed_up
from model_export.recipe import Precision
from model_export.training.frozen_outputs import cache_frozen_activations, run_layers
from tests.killable_run import StoppedError
from tests.tiny_base import make_micro_model

ROWS = [[1, 2, 3, 4, 5], [6, 7], [8, 9, 10]]


def make_micro_gemma() -> PreTrainedModel:
    """Build a model whose middle layer alone sees everything, with positions of its own."""
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    shape = {"vocab_size": 16, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 32}
    ropes = {"full_attention": 1e6, "sliding_attention": 2.0}
    rope = {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in ropes.items()}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = Gemma3TextConfig(
            layer_types=kinds, sliding_window=2, rope_parameters=rope, initializer_range=0.5, **shape, **heads
        )
        return Gemma3ForCausalLM(config).eval()


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    model: PreTrainedModel = make_micro_model(layers=3)
    speed_up(model, compiled=False)
    return model


@pytest.fixture(params=get_args(Precision))
def outputs(model: PreTrainedModel, tmp_path: Path, request: pytest.FixtureRequest) -> Sequence[torch.Tensor]:
    seen: list[tuple[int, int]] = []
    file = tmp_path / "outputs.bin"
    found = cache_frozen_activations(model, 2, ROWS, file, request.param, lambda *at: seen.append(at))
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


def stop(*_: int) -> None:
    raise StoppedError


def test_finished_cache_is_used_again(model: PreTrainedModel, tmp_path: Path) -> None:
    file = tmp_path / "outputs.bin"
    made = cache_frozen_activations(model, 2, ROWS, file, "float32", lambda *_: None)
    kept = cache_frozen_activations(model, 2, ROWS, file, "float32", stop)
    assert all(one.equal(other) for one, other in zip(made, kept, strict=True))


def test_unfinished_cache_is_completed_from_its_last_batch(
    model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_export.training.frozen_outputs._BATCH_SIZE", 1)
    seen: list[int] = []

    def stop_at_two(done: int, _: int) -> None:
        seen.append(done)
        if len(seen) == 2:
            raise StoppedError

    whole = cache_frozen_activations(model, 2, ROWS, tmp_path / "whole.bin", "float32", lambda *_: None)
    file = tmp_path / "cut.bin"
    with pytest.raises(StoppedError):
        cache_frozen_activations(model, 2, ROWS, file, "float32", stop_at_two)
    assert not file.exists()
    found = cache_frozen_activations(model, 2, ROWS, file, "float32", stop_at_two)
    assert seen == [1, 2, 2, 3]
    assert all(one.equal(other) for one, other in zip(whole, found, strict=True))


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


def test_layers_of_several_kinds_keep_their_own() -> None:
    model, row = make_micro_gemma(), torch.tensor([ROWS[0]])
    with torch.inference_mode():
        whole = model(row).logits
        with run_layers(model, slice(1), norm=False):
            lower = model.model(input_ids=row, use_cache=False).last_hidden_state
        with run_layers(model, slice(1, None)):
            upper = model(inputs_embeds=lower, use_cache=False).logits
    assert model.config.layer_types == ["sliding_attention", "full_attention", "sliding_attention"]
    assert torch.allclose(upper, whole, atol=1e-5)
