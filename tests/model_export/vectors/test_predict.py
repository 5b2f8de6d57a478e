import shutil
from pathlib import Path

import numpy as np
import pytest

from model_export.models.vector_student import VectorReference
from model_export.vectors.predict import VectorScorer
from service.contract.manifest import ENCODER_NAME


@pytest.fixture(scope="module")
def untrained(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vectors") / "reader"
    shutil.copytree(tiny_base, folder)
    shutil.copytree(tiny_base, folder / ENCODER_NAME)
    return folder


def test_mean_vectors_are_those_of_the_encoder_in_the_order_of_the_texts(untrained: Path) -> None:
    texts = [(5, 6, 7, 8, 9), (4,), (5, 6, 7, 8, 9), (9, 8, 7)]
    found = VectorScorer(untrained, (), (1, 2), "float32").mean_vectors(texts, 2, lambda *_: None)
    reference = VectorReference.load(untrained, (1, 2))
    for row, text in zip(found, texts, strict=True):
        vector = np.frombuffer(reference.encode(text, 1), "<f2").astype(np.float32)
        np.testing.assert_allclose(row, vector / np.linalg.norm(vector), atol=1e-3)
        assert np.linalg.norm(row) == pytest.approx(1)
