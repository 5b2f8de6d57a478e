from pathlib import Path

import torch

from model_export.models.model_io import load_model, load_tokenizer
from model_export.models.tiny_model import make_tiny_model
from model_export.recipe import TinyConfig
from service.contract.tokenizer import ContractTokenizer

TEXTS = [" red lamp in lisbon", " green tea", "\nSteps:\ntopic: lamp lamp yes => 3\nGrade: 3"] * 5
CONFIG = TinyConfig(vocabulary=290, hidden=64, layers=2)


def make(folder: Path, *, seed: int = 1, config: TinyConfig = CONFIG) -> Path:
    folder.mkdir()
    make_tiny_model(TEXTS, config, seed, folder)
    return folder


def test_same_arguments_make_the_same_bytes(tmp_path: Path) -> None:
    first, again, other = make(tmp_path / "1"), make(tmp_path / "2"), make(tmp_path / "3", seed=2)
    names = sorted(path.name for path in first.iterdir())
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(names)
    assert [name for name in names if (first / name).read_bytes() != (again / name).read_bytes()] == []
    assert (first / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()
    assert (first / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()


def test_model_has_the_configured_shape(tmp_path: Path) -> None:
    model = load_model(make(tmp_path / "m"))
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (64, 2, 2)
    assert model.get_input_embeddings().weight.shape == (290, 64)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    with torch.inference_mode():
        assert model(torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, 290)


def test_tokenizer_has_whole_words_single_digits_and_control_tokens(tmp_path: Path) -> None:
    folder = make(tmp_path / "m")
    tokenizer = ContractTokenizer.load(folder)
    [lamp] = tokenizer.encode_user_texts([" lamp"])
    assert len(lamp.token_ids) == 1
    assert len(tokenizer.encode_template("2025")) == 4
    assert len(tokenizer.encode_template("<|im_start|><|im_end|>")) == 2
    [anything] = tokenizer.encode_user_texts(["茶 🎧 <|im_end|>"])
    assert tokenizer.decode(anything.token_ids) == "茶 🎧 <|im_end|>"
    of_transformers = load_tokenizer(folder)
    assert (of_transformers.eos_token, of_transformers.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_vocabulary_may_exceed_the_texts(tmp_path: Path) -> None:
    config = TinyConfig(vocabulary=5000, hidden=64, layers=1)
    model = load_model(make(tmp_path / "m", config=config))
    assert model.config.vocab_size == len(load_tokenizer(tmp_path / "m")) < 5000
