"""Training examples, their batches and their order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from transformers import PretrainedConfig

from model_export.models.packing import pack, split_rows, with_outputs

IGNORED = -100  # the target that torch's cross-entropy skips
NO_GROUP = -1
_BATCHES_SORTED = 20
# What the model takes of a batch.
_READ = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "packing", "logits_to_keep")


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of prompt and completion.

    Attributes:
        soft_label: target of the token right after the prompt, or None.
        label: gold grade, or UNJUDGED.
        group: the query that the example is ranked in; None outside of any ranking.
        weights: of the completion's tokens in the loss; without them each weighs 1.
    """

    prompt: list[int]
    completion: list[int]
    soft_label: list[float] | None
    label: int
    group: str | None = None
    weights: list[float] | None = None


def collate(
    numbered: Sequence[tuple[int, Example]],
    grades: int,
    config: PretrainedConfig,
    outputs: Sequence[torch.Tensor] | None = None,
) -> dict[str, Any]:
    """Pack examples into a batch: what the model takes, and what `losses` takes.

    Each example comes with its index in `outputs`, the cached activations of whole examples, which take the place of token ids.

    `input_ids`: (1, tokens), or `inputs_embeds`: (1, tokens, hidden) float32. `logits_to_keep`: (predictions), the places of the
    tokens whose next token is predicted, which are at least the last of each prompt. `pack` describes the others.
    """
    examples = [example for _, example in numbered]
    rows = [example.prompt + example.completion for example in examples]
    segments = split_rows(rows, [len(example.prompt) - 1 for example in examples])
    predicting: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    starts = []
    at = sum(segment.stop - segment.start for segment in segments[: -len(rows)])
    for example, rest in zip(examples, segments[-len(rows) :], strict=True):
        first = at + len(example.prompt) - 1 - rest.start
        starts.append(len(targets))
        # A grade with a soft label is learned from that label alone.
        learned = [IGNORED, *example.completion[1:]] if example.soft_label else example.completion
        targets += learned or [IGNORED]
        weights += example.weights or [1.0] * max(1, len(learned))
        predicting += range(first, first + max(1, len(learned)))
        at += rest.stop - rest.start
    packed = pack(rows, segments, config)
    if outputs is not None:
        kept = [outputs[numbered[row][0]][start:stop] for row, start, stop, _ in segments]
        packed = with_outputs(packed, kept)
    return {
        **packed,
        "logits_to_keep": torch.tensor(predicting),
        "targets": torch.tensor(targets),
        "weights": torch.tensor(weights),
        "starts": torch.tensor(starts),
        "soft_labels": torch.tensor([example.soft_label or [0.0] * grades for example in examples]),
        "labels": torch.tensor([example.label for example in examples]),
        "groups": torch.tensor(_number_groups(examples)),
    }


def model_inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a collated batch that the model takes."""
    return {name: batch[name] for name in _READ if name in batch}


def _number_groups(examples: Sequence[Example]) -> list[int]:
    """Number the groups of a batch from 0. Without a soft label there is no score to rank by, and so no group."""
    numbers: dict[str, int] = {}
    return [
        numbers.setdefault(example.group, len(numbers))
        if example.group is not None and example.soft_label
        else NO_GROUP
        for example in examples
    ]


def plan_order(
    lengths: Sequence[int],
    batch_size: int,
    steps: int,
    seed: int,
    *,
    groups: Sequence[str | None] = (),
    group_size: int = 1,
) -> list[int]:
    """Return the index of the example at each position of the whole stage: epochs of shuffled batches of similar lengths.

    The order is fixed beforehand, so that a stage resumed from its saved state sees the same examples. With a `group_size`
    above 1, up to that many examples of a group, drawn anew in each epoch, stay in one batch. Where nothing else fills a
    batch exactly, such a part is cut in two.
    """
    random = Random(seed)
    order: list[int] = []
    while len(order) < steps * batch_size:
        units = (
            _split_groups(groups, group_size, random)
            if group_size > 1
            else [[i] for i in range(len(lengths))]
        )
        epoch = _whole_batches(random.sample(units, len(units)), batch_size)
        pool = max(1, batch_size * _BATCHES_SORTED * len(units) // len(lengths))
        batches: list[list[int]] = []
        rest: list[list[int]] = []
        for start in range(0, len(epoch), pool):
            rest += sorted(epoch[start : start + pool], key=lambda unit: max(lengths[i] for i in unit))
            while sum(map(len, rest)) >= batch_size:
                batches.append(_fill(rest, batch_size))
        # A short batch would shift all later ones, so the rest of groups that were cut sits out as well.
        batches = batches or [([index for unit in rest for index in unit] * batch_size)[:batch_size]]
        random.shuffle(batches)
        order += [index for batch in batches for index in batch]
    return order[: steps * batch_size]


def _whole_batches(shuffled: list[list[int]], batch_size: int) -> list[list[int]]:
    """Leave out units at the end, so that no batch is short. Chosen before the sort by length: else the longest never came."""
    examples = sum(map(len, shuffled))
    kept, excess = list(shuffled), examples % batch_size if examples > batch_size else 0
    while len(kept[-1]) <= excess:
        excess -= len(kept.pop())
    return kept


def _split_groups(groups: Sequence[str | None], size: int, random: Random) -> list[list[int]]:
    """Split each group at random into parts of `size` examples and one of the rest; examples without a group stay alone."""
    members: dict[str, list[int]] = {}
    units = []
    for index, group in enumerate(groups):
        if group is None:
            units.append([index])
        else:
            members.setdefault(group, []).append(index)
    for own in members.values():
        random.shuffle(own)
        units += [own[start : start + size] for start in range(0, len(own), size)]
    return units


def _fill(units: list[list[int]], size: int) -> list[int]:
    """Take a batch of exactly `size` examples from the units: in order, but passing over units that no longer fit."""
    batch: list[int] = []
    while room := size - len(batch):
        fitting = (at for at, unit in enumerate(units) if len(unit) <= room)
        unit = units.pop(next(fitting, 0))
        batch += unit[:room]
        if unit[room:]:
            units.insert(0, unit[room:])
    return batch
