"""A teacher that compares vectors: the cosine of query and note under an encoder trained for retrieval, used as it is."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from model_export.data.encoder import Encoder
from model_export.data.pairs import Pair
from model_export.progress import OnProgress


class CosineTeacher:
    """Computes one feature, the cosine; the encoder is loaded when it is needed. `encoder` is a name that `Encoder` takes."""

    chunk: int | None = None

    def __init__(self, encoder: str, on_progress: OnProgress) -> None:
        self.name = Path(encoder).name
        self.settings: Mapping[str, object] = {"encoder": encoder}
        self._encoder = encoder
        self._on_progress = on_progress

    def features(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Compute (pairs, 1) features. Raises EncoderError."""
        return Encoder(self._encoder, self._on_progress).cosines(pairs)[:, None].astype(np.float64)
