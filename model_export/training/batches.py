"""Training examples, their batches and their order."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch

IGNORED = -100  # the target that torch's cross-entropy skips
_BATCHES_SORTED = 20


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of prompt and completion. `soft_label` is the target of the token right after the prompt, or None."""

    prompt: list[int]
    completion: list[int]
    soft_label: list[float] | None
    label: int


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
    }


def plan_order(lengths: Sequence[int], batch_size: int, steps: int, seed: int) -> list[int]:
    """Return the index of the example at each position of the whole stage: epochs of shuffled batches of similar lengths.

    The order is fixed beforehand, so that a stage resumed from its saved state sees the same examples.
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
        # A short batch would shift all later ones. Its examples come in another epoch.
        batches = [batch for batch in batches if len(batch) == batch_size] or [
            (epoch * batch_size)[:batch_size]
        ]
        random.shuffle(batches)
        order += [index for batch in batches for index in batch]
    return order[: steps * batch_size]


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
