"""Predicts grades from note vectors, and compares texts by the encoder's vectors alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device

from model_export.models.model_io import load_model, speed_up
from model_export.models.packing import pack_whole
from model_export.models.vector_batches import VectorPair, collate_pairs, distinct_notes
from model_export.models.vector_student import VectorStudent
from model_export.recipe import Precision
from model_export.teacher.rollout import OnBatch
from service.contract.manifest import ENCODER_NAME


class VectorScorer:
    """A reader, and its encoder in a folder inside the reader's, as the stage `encode` writes them."""

    def __init__(
        self, folder: Path, cue: Sequence[int], label_token_ids: Sequence[int], precision: Precision
    ) -> None:
        encoder, reader = load_model(folder / ENCODER_NAME, precision), load_model(folder, precision)
        for model in (encoder, reader):
            speed_up(model, compiled=False)
        self._model = VectorStudent(encoder, reader).eval()
        self._device = reader.device
        self._cue = cue
        self._labels = list(label_token_ids)

    def probabilities(
        self, pairs: Sequence[VectorPair], parts: int, batch_size: int, on_batch: OnBatch
    ) -> np.ndarray:
        """Compute (pairs, grades) probabilities with that many vectors a note; pairs of a query share a batch."""
        order = sorted(range(len(pairs)), key=lambda index: (pairs[index].prefix, len(pairs[index].note)))
        found = np.zeros((len(pairs), len(self._labels)))
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            found[numbers] = self._score([pairs[number] for number in numbers], parts)
            on_batch(start + len(numbers), len(pairs))
        return found

    def mean_vectors(
        self, texts: Sequence[tuple[int, ...]], batch_size: int, on_batch: OnBatch
    ) -> np.ndarray:
        """Compute what the encoder makes of each text as one vector: (texts, hidden) unit vectors; repeated texts are encoded once."""
        distinct = sorted(set(texts), key=len)
        rows = []
        for start in range(0, len(distinct), batch_size):
            rows.append(self._encode(distinct[start : start + batch_size]))
            on_batch(start + len(rows[-1]), len(distinct))
        row_of = {text: row for row, text in enumerate(distinct)}
        found: np.ndarray = np.concatenate(rows)[[row_of[text] for text in texts]]
        return found

    def _encode(self, texts: Sequence[tuple[int, ...]]) -> np.ndarray:
        batch = self._collate([VectorPair((), text) for text in texts], (), 1)
        with torch.inference_mode():
            found = self._model.encode(batch)[:, 0]
        vectors: np.ndarray = torch.nn.functional.normalize(found, dim=-1).cpu().numpy()
        return vectors

    def _collate(self, pairs: Sequence[VectorPair], cue: Sequence[int], parts: int) -> dict[str, Any]:
        notes = pack_whole(distinct_notes(pairs), self._model.encoder.config)
        batch: dict[str, Any] = send_to_device(
            {**collate_pairs(pairs, cue, parts), "notes": notes}, self._device
        )
        return batch

    def _score(self, pairs: Sequence[VectorPair], parts: int) -> np.ndarray:
        batch = self._collate(pairs, self._cue, parts)
        with torch.inference_mode():
            logits = self._model.logits(self._model.read(self._model.encode(batch), batch))
        probabilities: np.ndarray = logits[:, self._labels].double().softmax(-1).cpu().numpy()
        return probabilities
