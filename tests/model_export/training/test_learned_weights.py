import torch

from model_export.training.learned_weights import freeze_all_but_linears, learn_linears
from tests.tiny_base import make_micro_model

IDS = torch.tensor([[1, 2, 3, 4]])


def test_only_linear_weights_of_upper_layers_learn() -> None:
    model = make_micro_model(3)
    freeze_all_but_linears(model, 1)
    chosen = {name for name, weight in model.named_parameters() if weight.requires_grad}
    linear = ["self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down"]
    assert chosen == {f"model.layers.{layer}.{name}_proj.weight" for layer in (1, 2) for name in linear}


def test_a_low_rank_difference_is_learned_and_added_to_the_weights() -> None:
    model, before = make_micro_model(3), make_micro_model(3).state_dict()
    with learn_linears(model, 1, 2):
        learned = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        assert {name.split(".")[-3] for name in learned} == {"lora_A", "lora_B"}
        assert {name.split(".")[2] for name in learned} == {"1", "2"}
        for weight in learned.values():
            torch.nn.init.normal_(weight)
        expected = model(IDS).logits
    torch.testing.assert_close(model(IDS).logits, expected)
    assert list(model.state_dict()) == list(before)
    for name, weight in model.state_dict().items():
        rank = torch.linalg.matrix_rank(weight - before[name], rtol=1e-4) if weight.dim() == 2 else 0
        assert rank == (2 if "proj" in name and "layers.0." not in name else 0), name


def test_factors_start_without_a_difference() -> None:
    model, plain = make_micro_model(3), make_micro_model(3)(IDS).logits
    with learn_linears(model, 0, 2):
        assert model(IDS).logits.equal(plain)
