import weakref
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from model_export.models.model_io import free_gpu_memory, is_emulated, keep_first_layers, load_model, speed_up
from tests.tiny_base import make_micro_model
from tests.tools import COMPILER, PYTHON_HEADERS, require

PROMPT = torch.tensor([[1, 2, 3]])


def test_model_in_a_reference_cycle_is_freed() -> None:
    model = make_micro_model(1)
    model.self_reference = model
    left = weakref.ref(model)
    del model
    free_gpu_memory()
    assert left() is None


def test_fewer_layers_can_be_saved_and_loaded(tmp_path: Path) -> None:
    model = make_micro_model(5)
    keep_first_layers(model, 2)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    with torch.inference_mode():
        whole = model(PROMPT, use_cache=False).logits
        assert torch.equal(loaded(PROMPT, use_cache=False).logits, whole)
        # Keys and values of each layer lie in a place of their own.
        for each in (model, loaded):
            cached, plain = (
                each.generate(PROMPT, max_new_tokens=5, do_sample=False, pad_token_id=0, use_cache=use_cache)
                for use_cache in (True, False)
            )
            assert torch.equal(cached, plain)


def test_first_layers_keep_their_layer_types(tmp_path: Path) -> None:
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    shape = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 32}
    config = Qwen3Config(layer_types=kinds, sliding_window=2, use_sliding_window=True, **shape, **heads)
    model = Qwen3ForCausalLM(config).eval()
    keep_first_layers(model, 2)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config.layer_types == ["sliding_attention", "full_attention"]
    with torch.inference_mode():
        assert torch.equal(loaded(PROMPT).logits, model(PROMPT).logits)


@pytest.mark.parametrize(
    ("units", "emulated"),
    [({"avx2": True}, True), ({"amx_bf16": True}, False), ({"avx512_bf16": True}, False)],
)
def test_bfloat16_without_a_unit_is_emulated(
    monkeypatch: pytest.MonkeyPatch, units: dict[str, bool], emulated: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert is_emulated("bfloat16") is emulated
    assert not is_emulated("float32")


def test_model_loads_in_float32_and_evaluation_mode(tiny_base: Path) -> None:
    model = load_model(tiny_base)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert not model.training


# torch's own compiler asks every tensor for its gradient, and is warned of it.
WARNED = pytest.mark.filterwarnings(r"ignore:The \.grad attribute of a Tensor that is not a leaf:UserWarning")


def gradients(model: PreTrainedModel) -> list[torch.Tensor]:
    ids = torch.tensor([[0, 0, 5, 6, 7], [1, 2, 3, 4, 5]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    model.zero_grad()
    logits = model(ids, attention_mask=mask, logits_to_keep=1, use_cache=False).logits
    logits.log_softmax(-1)[:, 0, 3].sum().backward()
    return [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]


@WARNED
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_speed_up_keeps_gradients_and_names(compiled: bool) -> None:
    if compiled:
        require(COMPILER)
        require(PYTHON_HEADERS)
    model = make_micro_model(3)
    names, expected = list(model.state_dict()), gradients(model)
    speed_up(model, compiled=compiled)
    found = gradients(model)
    assert len(found) == len(expected) > 0
    for each, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(each, wanted, atol=1e-5, rtol=1e-4)
    assert list(model.state_dict()) == names


def test_speed_up_leaves_no_trace_in_files(tmp_path: Path) -> None:
    plain, fast = make_micro_model(2), make_micro_model(2)
    speed_up(fast, compiled=True)
    for name, model in (("plain", plain), ("fast", fast)):
        model.save_pretrained(tmp_path / name)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "fast" / file).read_bytes()
