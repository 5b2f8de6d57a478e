"""The text student's own reading of pairs, which the readers of vectors learn to reproduce."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import send_to_device
from transformers import PreTrainedModel

from model_export.models.packing import pack_prompts
from model_export.teacher.rollout import OnBatch


@dataclass(frozen=True, slots=True)
class TextReadings:
    """What a text student reads from prompts: (pairs, grades) float32 probabilities that sum to 1, and (pairs, hidden) float16
    last hidden states of the cue."""

    probabilities: np.ndarray
    hidden: np.ndarray

    def save(self, path: Path) -> None:
        """Write one .npz file."""
        np.savez(path, probabilities=self.probabilities, hidden=self.hidden)

    @classmethod
    def load(cls, path: Path) -> "TextReadings":
        """Read the file of `save`."""
        with np.load(path) as file:
            return cls(file["probabilities"], file["hidden"])


def read_texts(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    label_token_ids: Sequence[int],
    batch_size: int,
    on_batch: OnBatch,
) -> TextReadings:
    """Read each prompt, in batches of similar lengths."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    probabilities = np.zeros((len(prompts), len(label_token_ids)), np.float32)
    hidden = np.zeros((len(prompts), model.config.hidden_size), np.float16)
    for start in range(0, len(prompts), batch_size):
        numbers = order[start : start + batch_size]
        last, labels = _read([prompts[number] for number in numbers], model, list(label_token_ids))
        hidden[numbers], probabilities[numbers] = last, labels
        on_batch(start + len(numbers), len(prompts))
    return TextReadings(probabilities, hidden)


def _read(
    prompts: Sequence[Sequence[int]], model: PreTrainedModel, labels: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    inputs = send_to_device(pack_prompts(prompts, model.config), model.device)
    ends = inputs.pop("logits_to_keep")
    with torch.inference_mode():
        last = model.model(**inputs, use_cache=False).last_hidden_state[0, ends]
        found = model.lm_head(last).float()[:, labels].softmax(-1)
    return last.float().cpu().numpy(), found.cpu().numpy()
