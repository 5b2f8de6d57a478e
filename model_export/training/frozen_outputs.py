"""A cache of the frozen layers' activations, computed once and kept on disk. Later epochs run only the layers above them.

It works for decoders as transformers lays them out: `model.model.layers`, which run in order, then `model.model.norm`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

_BATCH_SIZE = 32
# numpy has no bfloat16: its bits are stored as integers.
_STORED = np.uint16

OnBatch = Callable[[int, int], None]


class FrozenOutputs:
    """Cached activations of a list of examples, mapped from a file: only what is read takes memory."""

    def __init__(self, file: Path, lengths: Sequence[int], hidden: int) -> None:
        """`lengths` are the examples' lengths in tokens."""
        self._ends = np.cumsum(lengths, dtype=np.int64)
        self._lengths = list(lengths)
        self._mapped = np.memmap(file, _STORED, mode="r", shape=(int(self._ends[-1]), hidden))

    def __getitem__(self, number: int) -> torch.Tensor:
        """Return the activations of an example: (tokens, hidden) float32."""
        end = int(self._ends[number])
        return _to_float(np.array(self._mapped[end - self._lengths[number] : end]))

    def padded(self, numbers: Sequence[int], lefts: Sequence[int], width: int) -> torch.Tensor:
        """Return (examples, width, hidden) float32: each example starts at its `lefts`, with zeros around it."""
        batch = torch.zeros(len(numbers), width, self._mapped.shape[1])
        for row, (number, left) in enumerate(zip(numbers, lefts, strict=True)):
            batch[row, left : left + self._lengths[number]] = self[number]
        return batch


def cache_frozen_activations(
    model: PreTrainedModel, layers: int, rows: Sequence[Sequence[int]], file: Path, on_batch: OnBatch
) -> FrozenOutputs:
    """Write the activations after the first `layers` layers for each row of token ids, computed and stored in bfloat16.

    They take 1.2 kB per token at a width of 576. A file that a kill left half-written is written again.
    """
    hidden, lengths = model.config.hidden_size, [len(row) for row in rows]
    outputs_begin = np.concatenate([[0], np.cumsum(lengths)])
    mapped = np.memmap(file, _STORED, mode="w+", shape=(int(outputs_begin[-1]), hidden))
    by_length = sorted(range(len(rows)), key=lengths.__getitem__)
    model.eval()
    with _first_layers(model, layers), torch.inference_mode():
        for start in range(0, len(rows), _BATCH_SIZE):
            numbers = by_length[start : start + _BATCH_SIZE]
            found = _run(model, [rows[number] for number in numbers])
            for number, outputs in zip(numbers, found, strict=True):
                begin = int(outputs_begin[number])
                mapped[begin : begin + lengths[number]] = _to_bits(outputs[: lengths[number]])
            on_batch(min(start + _BATCH_SIZE, len(rows)), len(rows))
    mapped.flush()
    return FrozenOutputs(file, lengths, hidden)


@contextmanager
def layers_above(model: PreTrainedModel, layers: int) -> Iterator[None]:
    """Inside the block, the model consists of the layers above the first `layers`, whose activations it takes as `inputs_embeds`."""
    whole = model.model.layers
    model.model.layers = whole[layers:]
    try:
        yield
    finally:
        model.model.layers = whole


@contextmanager
def _first_layers(model: PreTrainedModel, layers: int) -> Iterator[None]:
    whole, norm = model.model.layers, model.model.norm
    model.model.layers, model.model.norm = whole[:layers], torch.nn.Identity()
    try:
        yield
    finally:
        model.model.layers, model.model.norm = whole, norm


def _run(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    width = max(map(len, rows))
    # Padding on the right is safe: attention is causal, so no token sees it.
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
    with torch.autocast(model.device.type, dtype=torch.bfloat16):
        found: torch.Tensor = model.model(
            input_ids=ids, attention_mask=mask, use_cache=False
        ).last_hidden_state
    return found.bfloat16().cpu()


def _to_bits(values: torch.Tensor) -> np.ndarray:
    return values.contiguous().view(torch.uint16).numpy()


def _to_float(bits: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(bits).view(torch.bfloat16).float()
