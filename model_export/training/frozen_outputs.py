"""A cache of the frozen layers' activations, computed once and kept on disk. Later epochs run only the layers above them.

It works for decoders as transformers lays them out: `model.model.layers`, which run in order, then `model.model.norm`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

import torch
from accelerate.utils import send_to_device
from transformers import PreTrainedModel

from model_export.models.packing import pack, places_of_rows, split_rows
from model_export.recipe import Precision
from model_export.training.stage_job import OnStep

_BATCH_SIZE = 32


def cache_frozen_activations(
    model: PreTrainedModel,
    layers: int,
    rows: Sequence[Sequence[int]],
    file: Path,
    precision: Precision,
    on_batch: OnStep,
) -> Sequence[torch.Tensor]:
    """Return the activations after the first `layers` layers for each row of token ids: (tokens, hidden) bfloat16.

    They are computed in the precision and rounded to bfloat16. What an earlier call left is used, so it must be of the same
    rows and model: the file, or the part of it that a kill left. It is mapped, so that only what is read takes memory: 1.2 kB
    per token at a width of 576.
    """
    lengths = [len(row) for row in rows]
    if not file.is_file():
        partial = file.with_suffix(".partial")
        outputs = _map(partial, lengths, model.config.hidden_size)
        by_length = sorted(range(len(rows)), key=lengths.__getitem__)
        starts = range(0, len(rows), _BATCH_SIZE)
        batches = [by_length[start : start + _BATCH_SIZE] for start in starts]
        # A new file is of zeros, which no activations are. A kill may have cut the last copy, so that batch is repeated.
        done = (all(outputs[number].any() for number in numbers) for numbers in batches)
        first = max(0, sum(takewhile(bool, done)) - 1)
        model.eval()
        with run_layers(model, slice(layers), norm=False), torch.inference_mode():
            for start, numbers in zip(starts[first:], batches[first:], strict=True):
                found = _run(model, [rows[number] for number in numbers], precision)
                for number, computed in zip(numbers, found, strict=True):
                    outputs[number].copy_(computed)
                on_batch(min(start + _BATCH_SIZE, len(rows)), len(rows))
        partial.rename(file)
    return _map(file, lengths, model.config.hidden_size)


def _map(file: Path, lengths: Sequence[int], hidden: int) -> Sequence[torch.Tensor]:
    mapped = torch.from_file(str(file), shared=True, size=sum(lengths) * hidden, dtype=torch.bfloat16)
    rows: Sequence[torch.Tensor] = mapped.view(-1, hidden).split(lengths)
    return rows


@contextmanager
def run_layers(model: PreTrainedModel, layers: slice, *, norm: bool = True) -> Iterator[None]:
    """Inside the block, the model has only these layers, and no last norm unless `norm`.

    The upper layers take the activations of the lower ones as `inputs_embeds`.
    """
    decoder = model.model
    whole, last_norm = decoder.layers, decoder.norm
    types = getattr(model.config, "layer_types", None)
    decoder.layers = whole[layers]
    if types:
        # Gemma 3 chooses a layer's positions and mask by its place in this list.
        model.config.layer_types = types[layers]
    if not norm:
        decoder.norm = torch.nn.Identity()
    try:
        yield
    finally:
        decoder.layers, decoder.norm = whole, last_norm
        if types:
            model.config.layer_types = types


def _run(model: PreTrainedModel, rows: Sequence[Sequence[int]], precision: Precision) -> list[torch.Tensor]:
    segments = split_rows(rows, [len(row) for row in rows])
    inputs = send_to_device(pack(rows, segments, model.config), model.device)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        found = model.model(**inputs, use_cache=False).last_hidden_state[0]
    outputs = found.bfloat16().cpu()
    return [outputs[places] for places in places_of_rows(segments, len(rows))]
