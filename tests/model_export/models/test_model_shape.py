import json
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from model_export.models.base_model import BaseModelError
from model_export.models.model_shape import find_shape
from model_export.models.tiny_model import make_tiny_model
from model_export.recipe import TinyConfig

TINY = TinyConfig(vocabulary=512, hidden=64, layers=2)


def count_parameters(folder: Path) -> int:
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    return sum(weight.numel() for weight in model.parameters())


def test_folder_s_parameters_are_those_of_transformers(tiny_base: Path) -> None:
    shape = find_shape(str(tiny_base), TINY)
    assert shape is not None
    assert shape.parameters == count_parameters(tiny_base)
    assert (shape.layers, shape.hidden, shape.key_value, shape.vocabulary) == (2, 128, 64, 512)


def test_tiny_base_is_that_of_tiny_model(tmp_path: Path) -> None:
    make_tiny_model(["a few words"], TINY, 0, tmp_path)
    shape = find_shape("tiny", TINY.model_copy(update={"vocabulary": 259 + 7}))
    made = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert shape is not None
    # So few words fill no vocabulary: the rest is rows of the embedding.
    rows = (made["vocab_size"] - shape.vocabulary) * shape.hidden
    assert shape.parameters + rows == count_parameters(tmp_path)


def test_smollm2_is_known() -> None:
    shape = find_shape("smollm2", TINY)
    assert shape is not None
    assert shape.parameters == 134_515_008


def test_untied_embeddings_and_wide_heads_count(tmp_path: Path) -> None:
    config = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 64,
        "vocab_size": 100,
    }
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shape = find_shape(str(tmp_path), TINY)
    assert shape is not None
    assert shape.linear == 64 * (4 * 128 + 3 * 128)
    assert shape.parameters == 2 * 100 * 64 + shape.linear + 3 * 64


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen/Qwen3-8B", 8_000_000_000),
        ("Qwen/Qwen3-0.6B", 600_000_000),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 135_000_000),
        ("owner/model-1.5b", 1_500_000_000),
    ],
)
def test_name_tells_parameters(name: str, parameters: int) -> None:
    shape = find_shape(name, TINY)
    assert shape is not None
    assert shape.parameters == parameters
    assert 0.7 < 12 * shape.layers * shape.hidden**2 / parameters < 1.3
    assert "guessed" in shape.source


@pytest.mark.parametrize("name", ["owner/model", "owner/mixture-8x7B", "owner/v2-base"])
def test_name_that_tells_nothing(name: str) -> None:
    assert find_shape(name, TINY) is None


def test_fewer_layers_are_smaller() -> None:
    whole = find_shape("smollm2", TINY)
    assert whole is not None
    half = whole.keep_layers(15)
    assert (half.layers, half.linear) == (15, whole.linear // 2)
    assert whole.parameters - half.parameters == whole.linear // 2


def test_first_layers_of_a_base_are_known_by_its_name() -> None:
    whole, half = find_shape("smollm2", TINY), find_shape("smollm2:15", TINY)
    assert whole is not None
    assert half == whole.keep_layers(15)
    assert find_shape("owner/model:15", TINY) is None


@pytest.mark.parametrize("content", ["{", "[]", '{"model_type": "bert"}'])
def test_folder_of_something_else_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(BaseModelError, match=r"config\.json is not the configuration of a decoder"):
        find_shape(str(tmp_path), TINY)
