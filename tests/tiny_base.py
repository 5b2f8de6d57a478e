"""Makes a base model for tests: a tiny Llama with random weights and a real tokenizer, as transformers saves them."""

import json
import sys
from pathlib import Path
from typing import Any

from tests.checkpoints import tiny_tokenizer_json
from tests.processes import output_of


def make_micro_model(layers: int, **changes: Any) -> Any:
    """Build a model of 32 hidden units, with the same random weights each time."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 32, "max_position_embeddings": 32}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "num_hidden_layers": layers}
    torch.set_num_threads(1)  # as in conftest's tiny_base
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(vocab_size=16, initializer_range=0.1, **shape, **heads, **changes)
        return LlamaForCausalLM(config).eval()


def make_tiny_base(folder: Path, *, tokenizer_json: str | None = None, max_positions: int = 2048) -> Path:
    """Write a transformers folder, with the same bytes each time, in about a second."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,  # heads of 32: the least that vLLM takes on a CPU
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=max_positions,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        for parameter in model.parameters():  # wide enough that probabilities differ between prompts
            torch.nn.init.normal_(parameter, std=0.25)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer_json or tiny_tokenizer_json(), encoding="utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "README.md").write_text("---\nlicense: cc0-1.0\n---\n# Tiny\n", encoding="utf-8")
    return folder


def make_tiny_checkpoint(folder: Path) -> Path:
    """Make a tiny checkpoint with random weights, which the real engine can load."""
    base, out = make_tiny_base(folder / "tiny"), folder / "checkpoint"
    output_of(sys.executable, "-m", "model_export", "assemble", "--base", base, "--out", out)
    return out
