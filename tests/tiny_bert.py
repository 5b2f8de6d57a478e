"""Makes a tiny BERT with random weights, and a tokenizer of whole words."""

import re
from collections.abc import Sequence
from pathlib import Path

from model_export.data.pairs import Pair, note_text


def make_tiny_bert(folder: Path, pairs: Sequence[Pair]) -> Path:
    """Write a transformers folder whose tokenizer knows all words of the pairs; the same bytes each time."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    texts = [text.lower() for pair in pairs for text in (pair.query, note_text(pair.note))]
    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text)})
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(tokens)})
    config = BertConfig(
        vocab_size=len(tokens),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
    )
    torch.set_num_threads(1)  # as in conftest's tiny_base
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(folder)
    return folder
