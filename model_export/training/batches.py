"""What supervised training reads: examples, the batches they come in, and the order of those."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch

from model_export.training.frozen_outputs import FrozenOutputs

IGNORED = -100  # what torch's cross-entropy leaves out
_BATCHES_SORTED = 20


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of prompt and completion; `soft_label` is the target of the token right after the prompt, or None."""

    prompt: list[int]
    completion: list[int]
    soft_label: list[float] | None
    label: int


def collate(examples: Sequence[Example], pad_token_id: int, grades: int) -> dict[str, torch.Tensor]:
    """Prompts padded on the left, completions on the right, so that every completion starts in the same column.

    `input_ids`, `attention_mask`, `position_ids`: (batch, prompt + completion length). See `losses` for the rest.
    """
    width = max(len(example.prompt) for example in examples)
    tail = max(len(example.completion) for example in examples)
    rows, targets = [], []
    for example in examples:
        left, right = width - len(example.prompt), tail - len(example.completion)
        rows.append(
            (
                [pad_token_id] * left + example.prompt + example.completion + [pad_token_id] * right,
                left,
                right,
            )
        )
        # A grade that has a soft label is learned from that alone.
        learned = [IGNORED, *example.completion[1:]] if example.soft_label else example.completion
        targets.append((learned + [IGNORED] * (1 + tail - len(learned)))[: 1 + tail])
    mask = torch.tensor(
        [[0] * left + [1] * (width + tail - left - right) + [0] * right for _, left, right in rows]
    )
    return {
        "input_ids": torch.tensor([row for row, _, _ in rows]),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
        "targets": torch.tensor(targets),
        "soft_labels": torch.tensor([example.soft_label or [0.0] * grades for example in examples]),
        "labels": torch.tensor([example.label for example in examples]),
    }


def plan_order(lengths: Sequence[int], batch_size: int, steps: int, seed: int) -> list[int]:
    """Which example comes when, for the whole stage: epochs of shuffled batches, each of like lengths.

    Made beforehand, so that a stage which goes on from its saved state sees what it would have seen.
    """
    random = Random(seed)
    order: list[int] = []
    while len(order) < steps * batch_size:
        epoch = random.sample(range(len(lengths)), len(lengths))
        pool = batch_size * _BATCHES_SORTED
        epoch = [
            index
            for start in range(0, len(epoch), pool)
            for index in sorted(epoch[start : start + pool], key=lambda i: lengths[i])
        ]
        batches = [epoch[start : start + batch_size] for start in range(0, len(epoch), batch_size)]
        # A short batch would shift all that follow; its examples have their turn in another epoch.
        batches = [batch for batch in batches if len(batch) == batch_size] or [
            (epoch * batch_size)[:batch_size]
        ]
        random.shuffle(batches)
        order += [index for batch in batches for index in batch]
    return order[: steps * batch_size]


def collate_outputs(
    numbered: Sequence[tuple[int, Example]], outputs: FrozenOutputs, pad_token_id: int, grades: int
) -> dict[str, torch.Tensor]:
    """As `collate`, of examples with their numbers among the kept outputs, which go in the place of `input_ids`.

    `inputs_embeds`: (batch, prompt + completion length, hidden).
    """
    batch = collate([example for _, example in numbered], pad_token_id, grades)
    # The first position that isn't padding.
    lefts = batch["attention_mask"].argmax(-1).tolist()
    width = batch.pop("input_ids").shape[1]
    return {**batch, "inputs_embeds": outputs.padded([number for number, _ in numbered], lefts, width)}
