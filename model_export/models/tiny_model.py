"""A tiny model made from scratch, with a tokenizer trained on the texts that it will read."""

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from model_export.recipe import TinyConfig

_MAX_POSITIONS = 1024
# Standard deviation of the random weights: at the usual 0.02, a model this narrow needs twice the steps to learn to copy.
_SPREAD = 0.05
_CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def make_tiny_model(texts: Iterable[str], config: TinyConfig, seed: int, folder: Path) -> None:
    """Write a transformers folder: a Llama with random weights. The same arguments give the same bytes."""
    tokenizer = _train_tokenizer(texts, config.vocabulary)
    torch.manual_seed(seed)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = LlamaForCausalLM(_llama_config(config, vocab_size=len(tokenizer), **ends))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def empty_tiny_model(config: TinyConfig) -> LlamaForCausalLM:
    """Build the same architecture on the meta device, without weights, to count its parameters."""
    with torch.device("meta"):
        return LlamaForCausalLM(_llama_config(config, vocab_size=config.vocabulary))


def _llama_config(config: TinyConfig, **of_tokenizer: int) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=config.hidden,
        intermediate_size=config.intermediate,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=_MAX_POSITIONS,
        tie_word_embeddings=True,
        initializer_range=_SPREAD,
        bos_token_id=None,
        **of_tokenizer,
    )


def _train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    # Like SmolLM2's: each digit is a token of its own, and so is a grade.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(_CHATML),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=_CHATML[2],
        pad_token=_CHATML[0],
        clean_up_tokenization_spaces=False,
    )
