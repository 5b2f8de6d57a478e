import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from model_export.models.packing import PACKED_ATTENTION

IDS = torch.tensor([[9, 9, 5, 6, 7], [1, 2, 3, 4, 5]])
PADDED = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    """Two query heads share a key head."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    shape = {"hidden_size": 32, "intermediate_size": 32, "max_position_embeddings": 32, "vocab_size": 16}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(initializer_range=0.3, **shape, **heads)).eval()


def hidden(model: PreTrainedModel, attention: str, mask: torch.Tensor) -> torch.Tensor:
    model.set_attn_implementation(attention)
    found: torch.Tensor = model.model(IDS, attention_mask=mask).last_hidden_state
    return found[mask.bool()]


@pytest.mark.parametrize("mask", [PADDED, torch.ones_like(PADDED)], ids=["padded", "whole"])
@pytest.mark.parametrize("learning", [True, False])
def test_outputs_are_those_of_transformers(
    model: PreTrainedModel, mask: torch.Tensor, learning: bool
) -> None:
    with torch.set_grad_enabled(learning):
        found, expected = (hidden(model, name, mask) for name in (PACKED_ATTENTION, "eager"))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_generation_is_that_of_transformers(model: PreTrainedModel) -> None:
    written = []
    for attention in (PACKED_ATTENTION, "eager"):
        model.set_attn_implementation(attention)
        found = model.generate(
            IDS,
            attention_mask=PADDED,
            max_new_tokens=8,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=0,
        )
        written.append((found.sequences, torch.stack(found.logits)))
    (ids, logits), (expected_ids, expected_logits) = written
    assert torch.equal(ids, expected_ids)
    torch.testing.assert_close(logits, expected_logits, atol=1e-5, rtol=1e-5)
