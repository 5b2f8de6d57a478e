"""Turns a prompt with vectors into what vLLM takes. It imports torch only when it is called."""

from typing import TYPE_CHECKING

from service.contract.vector_prompt import VectorPrompt

if TYPE_CHECKING:
    import torch


def embed_prompt(prompt: VectorPrompt, width: int) -> "tuple[torch.Tensor, list[int], list[bool]]":
    """Return (length, width) rows, token ids, and where a position is a token.

    The rows at token positions are zeros, which vLLM hashes and never reads. vLLM's hash of a block covers rows and token ids,
    but not which positions are tokens (vllm#56655): since no vector is zeros, blocks of equal hashes have the same positions.
    """
    import torch

    before, after = len(prompt.prefix), len(prompt.cue)
    row = 2 * width
    # Joined as bytes: torch fills a tensor of this size with several threads, which wait for the engine's threads. Writable,
    # because torch requires it.
    rows = bytearray(before * row) + prompt.rows + bytearray(after * row)
    embeds = torch.frombuffer(rows, dtype=torch.float16).view(-1, width)
    vectors = len(embeds) - before - after
    token_ids = [*prompt.prefix, *[0] * vectors, *prompt.cue]
    return embeds, token_ids, [True] * before + [False] * vectors + [True] * after
