"""Training examples, their batches and their order."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch

IGNORED = -100  # the target that torch's cross-entropy skips
NO_GROUP = -1
_BATCHES_SORTED = 20


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of prompt and completion.

    Attributes:
        soft_label: target of the token right after the prompt, or None.
        label: gold grade, or UNJUDGED.
        group: the query that the example is ranked in; None outside of any ranking.
    """

    prompt: list[int]
    completion: list[int]
    soft_label: list[float] | None
    label: int
    group: str | None = None


def collate(examples: Sequence[Example], pad_token_id: int, grades: int) -> dict[str, torch.Tensor]:
    """Pad prompts on the left and completions on the right, so that every completion starts in the same column.

    `input_ids`, `attention_mask`, `position_ids`: (batch, prompt + completion length). `losses` describes the rest.
    """
    width = max(len(example.prompt) for example in examples)
    tail = max(len(example.completion) for example in examples)
    rows, masks, targets = [], [], []
    for example in examples:
        whole = example.prompt + example.completion
        left, right = width - len(example.prompt), tail - len(example.completion)
        rows.append([pad_token_id] * left + whole + [pad_token_id] * right)
        masks.append([0] * left + [1] * len(whole) + [0] * right)
        # A grade with a soft label is learned from that label alone.
        learned = [IGNORED, *example.completion[1:]] if example.soft_label else example.completion
        targets.append((learned + [IGNORED] * (1 + tail - len(learned)))[: 1 + tail])
    mask = torch.tensor(masks)
    return {
        "input_ids": torch.tensor(rows),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
        "targets": torch.tensor(targets),
        "soft_labels": torch.tensor([example.soft_label or [0.0] * grades for example in examples]),
        "labels": torch.tensor([example.label for example in examples]),
        "groups": torch.tensor(_number_groups(examples)),
    }


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
        epoch = random.sample(units, len(units))
        pool = max(1, batch_size * _BATCHES_SORTED * len(units) // len(lengths))
        batches: list[list[int]] = []
        rest: list[list[int]] = []
        for start in range(0, len(epoch), pool):
            rest += sorted(epoch[start : start + pool], key=lambda unit: max(lengths[i] for i in unit))
            while sum(map(len, rest)) >= batch_size:
                batches.append(_fill(rest, batch_size))
        # A short batch would shift all later ones. Its examples come in another epoch.
        batches = batches or [([index for unit in rest for index in unit] * batch_size)[:batch_size]]
        random.shuffle(batches)
        order += [index for batch in batches for index in batch]
    return order[: steps * batch_size]


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


def collate_outputs(
    numbered: Sequence[tuple[int, Example]], outputs: Sequence[torch.Tensor], pad_token_id: int, grades: int
) -> dict[str, torch.Tensor]:
    """Collate examples like `collate`, with cached activations instead of token ids.

    Each example comes with its index in `outputs`. `inputs_embeds`: (batch, prompt + completion length, hidden) float32.
    """
    batch = collate([example for _, example in numbered], pad_token_id, grades)
    mask = batch["attention_mask"]
    found = torch.cat([outputs[number] for number, _ in numbered]).float()
    embeds = torch.zeros(*mask.shape, found.shape[1])
    embeds[mask.bool()] = found
    del batch["input_ids"]
    return {**batch, "inputs_embeds": embeds}
