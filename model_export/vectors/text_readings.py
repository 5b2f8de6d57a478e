"""The text student's own reading of pairs, which the readers of vectors learn to reproduce."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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
    file: Path,
    on_batch: OnBatch,
) -> TextReadings:
    """Read each prompt, in batches of similar lengths, and write the readings to the file.

    What a killed call left beside the file is used, so it must be of the same model, prompts and labels.
    """
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    partial = [file.with_name(f"{name}.npy") for name in ("probabilities", "hidden")]
    probabilities = _map(partial[0], (len(prompts), len(label_token_ids)), np.float32)
    hidden = _map(partial[1], (len(prompts), model.config.hidden_size), np.float16)
    for start in range(0, len(prompts), batch_size):
        numbers = order[start : start + batch_size]
        # A new map is of zeros, and a row's probabilities are written after its hidden state.
        if not np.allclose(probabilities[numbers].sum(-1), 1, atol=1e-3):
            last, labels = _read([prompts[number] for number in numbers], model, list(label_token_ids))
            hidden[numbers] = last
            probabilities[numbers] = labels
        on_batch(start + len(numbers), len(prompts))
    found = TextReadings(probabilities, hidden)
    found.save(file)
    for left in partial:
        left.unlink()
    return found


def _map(file: Path, shape: tuple[int, int], dtype: type[np.floating]) -> np.memmap:
    mode: Literal["r+", "w+"] = "r+" if file.is_file() else "w+"
    return np.lib.format.open_memmap(file, mode, dtype, shape)


def _read(
    prompts: Sequence[Sequence[int]], model: PreTrainedModel, labels: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    inputs = send_to_device(pack_prompts(prompts, model.config), model.device)
    ends = inputs.pop("logits_to_keep")
    with torch.inference_mode():
        last = model.model(**inputs, use_cache=False).last_hidden_state[0, ends]
        found = model.lm_head(last).float()[:, labels].softmax(-1)
    return last.float().cpu().numpy(), found.cpu().numpy()
