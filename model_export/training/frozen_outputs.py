"""What frozen layers make of each example, computed once and kept on disk: an epoch then pays for the layers above them alone.

For decoders as transformers lays them out: `model.model.layers`, which run one after the other, and `model.model.norm` after the last.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

_BATCH_SIZE = 32
# bfloat16, which numpy has not, as the bits it is made of.
_STORED = np.uint16

OnBatch = Callable[[int, int], None]


class FrozenOutputs:
    """Outputs of one number of layers for a list of examples, mapped from a file: what is not asked for takes no memory."""

    def __init__(self, file: Path, lengths: Sequence[int], hidden: int) -> None:
        """`lengths`: each example's, in tokens."""
        self._ends = np.cumsum(lengths, dtype=np.int64)
        self._lengths = list(lengths)
        self._mapped = np.memmap(file, _STORED, mode="r", shape=(int(self._ends[-1]), hidden))

    def __getitem__(self, number: int) -> torch.Tensor:
        """(tokens, hidden) float32 of an example."""
        end = int(self._ends[number])
        return _to_float(np.array(self._mapped[end - self._lengths[number] : end]))

    def padded(self, numbers: Sequence[int], lefts: Sequence[int], width: int) -> torch.Tensor:
        """(examples, width, hidden) float32, each one behind so many positions of zeros, and zeros behind it."""
        batch = torch.zeros(len(numbers), width, self._mapped.shape[1])
        for row, (number, left) in enumerate(zip(numbers, lefts, strict=True)):
            batch[row, left : left + self._lengths[number]] = self[number]
        return batch


def cache_frozen_activations(
    model: PreTrainedModel, layers: int, rows: Sequence[Sequence[int]], file: Path, on_batch: OnBatch
) -> FrozenOutputs:
    """Write what the first `layers` layers make of each row of token ids, in bfloat16; 1.2 kB a token where they are 576 wide.

    Computed in bfloat16 as well. What a kill left half-written is written anew.
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
    """Inside the block the model is its layers above the first `layers`, and takes their outputs as `inputs_embeds`."""
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
    # Padding on the right changes nothing of what is before it: a token sees none behind it.
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
