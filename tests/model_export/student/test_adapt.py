from pathlib import Path

import pytest
import torch

from model_export.checkpoint.adapter import Factors, merge
from model_export.models.base_model import load_base, locate_base
from model_export.models.model_io import load_model
from model_export.student.adapt import attach_factors

NAMES = ("model.layers.0.mlp.down_proj.weight", "model.layers.1.self_attn.v_proj.weight")
IDS = torch.tensor([[1, 2, 3, 4, 5]])


@pytest.fixture
def factors(tiny_base: Path) -> Factors:
    generator = torch.Generator().manual_seed(1)
    weights = {name: load_model(tiny_base).get_parameter(name) for name in NAMES}
    return {
        name: (torch.randn(rows, 3, generator=generator), torch.randn(3, columns, generator=generator))
        for name, (rows, columns) in ((name, weight.shape) for name, weight in weights.items())
    }


def test_attached_factors_give_the_outputs_of_the_merged_model(tiny_base: Path, factors: Factors) -> None:
    attached, merged = load_model(tiny_base), load_base(locate_base(str(tiny_base)))
    plain = attached(IDS).logits
    attach_factors(attached, factors)
    merge(merged, factors)
    expected = merged.model(IDS).logits
    torch.testing.assert_close(attached(IDS).logits, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(plain, expected, atol=1e-2)


def test_only_factors_learn(tiny_base: Path, factors: Factors) -> None:
    model = load_model(tiny_base)
    attach_factors(model, factors)
    learning = [name.rpartition(".")[2] for name, weight in model.named_parameters() if weight.requires_grad]
    assert sorted(learning) == ["lora_a", "lora_a", "lora_b", "lora_b"]
