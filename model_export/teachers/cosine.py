"""A teacher that compares vectors: the cosine of query and note under an encoder trained for retrieval, used as it is."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from model_export.data.encoder import Encoder
from model_export.data.pairs import Pair
from model_export.progress import OnProgress
from model_export.teachers.base import Features


class CosineTeacher:
    """Computes one feature, the cosine; the encoder is loaded when it is needed. `encoder` is a name that `Encoder` takes."""

    chunk: int | None = 4096  # texts that repeat within a chunk are encoded once
    parallel = True

    def __init__(self, encoder: str) -> None:
        self.name = Path(encoder).name
        self.settings: Mapping[str, object] = {"encoder": encoder}
        self._encoder = encoder

    def load(self, on_progress: OnProgress) -> Features:
        """Load the encoder, for (pairs, 1) features. Raises EncoderError."""
        encoder = Encoder(self._encoder, on_progress)

        def features(pairs: Sequence[Pair]) -> np.ndarray:
            return encoder.cosines(pairs)[:, None].astype(np.float64)

        return features
