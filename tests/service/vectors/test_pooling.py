import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from service.vectors.pooling import pool


@given(st.integers(1, 20), st.integers(1, 8), st.integers(0, 99))
def test_vectors_are_scaled_means_of_consecutive_parts(length: int, per_note: int, seed: int) -> None:
    hidden = np.random.default_rng(seed).normal(size=(length, 16)).astype(np.float32)
    rows = np.frombuffer(pool(hidden, per_note, 0.1), "<f2").reshape(-1, 16).astype(np.float64)
    used = min(per_note, length)
    parts = [
        [t for t in range(length) if p * length // used <= t < (p + 1) * length // used] for p in range(used)
    ]
    assert sorted(sum(parts, [])) == list(range(length))  # noqa: RUF017 - lists of a few numbers
    for row, tokens in zip(rows, parts, strict=True):
        mean = sum(hidden[token].astype(np.float64) for token in tokens) / len(tokens)
        np.testing.assert_allclose(row, 0.1 * mean / np.sqrt(np.mean(mean**2)), rtol=1e-3, atol=1e-5)


def test_no_token_makes_no_vector() -> None:
    assert pool(np.zeros((0, 16), np.float32), 4, 0.1) == b""
