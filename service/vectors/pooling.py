"""Turns an encoder's hidden states into a note's vectors, exactly as the trainer does."""

import numpy as np
import numpy.typing as npt

# Keeps a mean of zeros from dividing by zero. As torch's rms_norm for float32.
_EPSILON = float(np.finfo(np.float32).eps)


def pool(hidden: npt.NDArray[np.float32], per_note: int, scale: float) -> bytes:
    """Return the rows of a note's vectors: the mean of each of `per_note` equal parts, scaled to the root mean square `scale`.

    A note with fewer tokens has a vector for each. Parts differ in length by at most one token.

    Args:
        hidden: (tokens, width), the last hidden states after the model's final norm.
    """
    length, width = hidden.shape
    used = min(per_note, length)
    parts = [hidden[part * length // used : (part + 1) * length // used] for part in range(used)]
    means = np.array([part.mean(axis=0) for part in parts], dtype=np.float32).reshape(used, width)
    size = np.sqrt(np.square(means).mean(axis=1, keepdims=True) + _EPSILON)
    rows: bytes = (scale * means / size).astype("<f2").tobytes()
    return rows
