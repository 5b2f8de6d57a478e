import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from model_export.models.quantize import QuantizeError, load_as_served, quantize_folder, quantize_rows
from model_export.models.reference_scorer import ReferenceScorer
from tests.tiny_base import make_tiny_base

LABELS = (16, 17, 18, 19)
PROMPTS = [[5, 9, 260, 33], [1] * 50, list(range(100, 180))]


@pytest.fixture(scope="module")
def quantized(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Quantize the tiny base to int8; read-only."""
    folder = tmp_path_factory.mktemp("quantized") / "int8"
    quantize_folder(tiny_base, folder)
    return folder


def test_rounding_error_is_at_most_half_a_step() -> None:
    weight = (
        torch.randn(40, 30, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 6, 40)[:, None]
    )
    rounded, scales = quantize_rows(weight)
    assert (rounded.dtype, scales.dtype, tuple(scales.shape)) == (torch.int8, torch.float32, (40, 1))
    assert bool(((rounded.float() * scales - weight).abs() <= 0.5001 * scales).all())
    assert int(rounded.abs().max()) == 127


def test_row_of_zeros_stays_zero() -> None:
    weight = torch.zeros(2, 3)
    weight[1, 0] = 1e-44  # its scale would vanish
    rounded, scales = quantize_rows(weight)
    assert not rounded.any()
    assert bool(torch.isfinite(scales).all())
    assert bool((scales > 0).all())


def test_folder_holds_int8_weights_scales_and_their_config(quantized: Path, tiny_base: Path) -> None:
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_base, quantized))
    for name, tensor in before.items():
        if name.endswith("proj.weight"):
            assert after[name].dtype == torch.int8
            assert tuple(after[f"{name}_scale"].shape) == (tensor.shape[0], 1)
        else:
            assert after[name].equal(tensor)
    assert (quantized / "tokenizer.json").read_bytes() == (tiny_base / "tokenizer.json").read_bytes()
    config = json.loads((quantized / "config.json").read_text(encoding="utf-8"))
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"


def test_reference_computes_with_rounded_weights_and_activations(quantized: Path, tiny_base: Path) -> None:
    full, int8 = (ReferenceScorer.load(folder, LABELS) for folder in (tiny_base, quantized))
    for prompt in PROMPTS:
        before, after = full.label_logprobs(prompt), int8.label_logprobs(prompt)
        assert after == pytest.approx(before, abs=0.2)
        assert after != pytest.approx(before, abs=1e-4)


def test_linear_equals_an_integer_product(quantized: Path) -> None:
    name = "model.layers.0.mlp.down_proj"
    tensors = load_file(quantized / "model.safetensors")
    inputs = torch.randn(3, 128, generator=torch.Generator().manual_seed(0))
    found = load_as_served(quantized).get_submodule(name)(inputs)
    integers, scales = quantize_rows(inputs)
    product = integers.double() @ tensors[f"{name}.weight"].double().T
    expected = product * scales.double() * tensors[f"{name}.weight_scale"].double().T
    assert float((found.detach() - expected).abs().max()) < 1e-5


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_plain_transformers_loads_the_folder(quantized: Path) -> None:
    plain = ReferenceScorer(AutoModelForCausalLM.from_pretrained(quantized).eval(), LABELS)
    ours = ReferenceScorer.load(quantized, LABELS)
    for prompt in PROMPTS:  # near, not equal: it scales activations by max / 127.5
        assert plain.label_logprobs(prompt) == pytest.approx(ours.label_logprobs(prompt), abs=0.2)


def rename_weights(base: Path) -> None:
    (base / "model.safetensors").rename(base / "model-00001-of-00001.safetensors")


def replace_weights(base: Path) -> None:
    save_file({"h.0.mlp.c_fc.weight": torch.ones(2, 2)}, base / "model.safetensors")


def quantize(base: Path) -> None:
    quantize_folder(base, base.with_name("int8"))
    shutil.copytree(base.with_name("int8"), base, dirs_exist_ok=True)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (quantize, "base is already quantized"),
        (rename_weights, r"no model\.safetensors: weights in shards"),
        (replace_weights, "no linear layers"),
    ],
)
def test_folder_that_can_t_be_quantized_is_refused(
    tmp_path: Path, change: Callable[[Path], None], complaint: str
) -> None:
    base = make_tiny_base(tmp_path / "base")
    change(base)
    with pytest.raises(QuantizeError, match=complaint):
        quantize_folder(base, tmp_path / "again")


def test_other_quantization_is_refused(quantized: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(quantized, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["num_bits"] = 4
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(QuantizeError, match="another quantization"):
        load_as_served(folder)
