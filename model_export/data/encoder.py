"""Vectors of texts by an encoder of sentence-transformers, used as it is, and the cosines of queries and notes."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from model_export.data.pairs import Pair, note_text
from model_export.models.encoders import load_encoder
from model_export.progress import OnProgress

_CHUNK = 512  # texts between two reports of progress


class Encoder:
    """A model that gives each text a vector.

    Attributes:
        name: `minilm`, or the last part of the folder's path or hub id.
    """

    def __init__(self, name: str, on_progress: OnProgress) -> None:
        """Load `minilm`, a sentence-transformers folder, or a hub id. Raises EncoderError."""
        import torch
        from sentence_transformers import SentenceTransformer

        self.name = Path(name).name
        self._on_progress = on_progress
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = load_encoder(name, partial(SentenceTransformer, device=device))

    def cosines(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Compute the cosine of each pair's query and note, (pairs,) in [-1, 1]. The model cuts long texts."""
        queries = [pair.query for pair in pairs]
        notes = [note_text(pair.note) for pair in pairs]
        return row_cosines(self.encode([*queries, *notes]))

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Compute a unit vector of each text, (texts, width) float32; repeated texts are encoded once."""
        # Longest first, so that a batch has texts of similar length.
        distinct = sorted(set(texts), key=lambda text: (-len(text), text))
        vectors = np.vstack([self._encode(distinct, start) for start in range(0, len(distinct), _CHUNK)])
        row_of = {text: row for row, text in enumerate(distinct)}
        found: np.ndarray = vectors[[row_of[text] for text in texts]]
        return found

    def _encode(self, texts: Sequence[str], start: int) -> np.ndarray:
        chunk = list(texts[start : start + _CHUNK])
        vectors: np.ndarray = self._model.encode(chunk, normalize_embeddings=True, show_progress_bar=False)
        self._on_progress(f"Encode {self.name}", start + len(chunk), len(texts))
        return vectors


def row_cosines(vectors: np.ndarray) -> np.ndarray:
    """Compute the cosines (pairs,) of unit vectors (2 x pairs, width): all queries', then all notes'."""
    of_queries, of_notes = np.split(vectors, 2)
    found: np.ndarray = np.einsum("ij,ij->i", of_queries, of_notes)
    return found
