from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedModel

from model_export.models.model_io import speed_up
from model_export.vectors.text_readings import TextReadings, read_texts
from tests.killable_run import StoppedError
from tests.tiny_base import make_micro_model

PROMPTS = [[1, 2, 3, 4, 5], [6, 7], [8, 9, 10]]
LABELS = [3, 5]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    model: PreTrainedModel = make_micro_model(layers=2)
    speed_up(model, compiled=False)
    return model


def stop(*_: int) -> None:
    raise StoppedError


def test_a_killed_reading_goes_on_after_its_last_batch(model: PreTrainedModel, tmp_path: Path) -> None:
    whole = read_texts(model, PROMPTS, LABELS, 1, tmp_path / "whole.npz", lambda *_: None)
    file = tmp_path / "readings.npz"
    with pytest.raises(StoppedError):
        read_texts(model, PROMPTS, LABELS, 1, file, stop)
    kept = np.load(tmp_path / "probabilities.npy")
    # The shortest prompt was read first. Mark it, to see that it is not read again.
    assert kept.any(-1).tolist() == [False, True, False]
    kept[1] = [1, 0]
    np.save(tmp_path / "probabilities.npy", kept)
    read_texts(model, PROMPTS, LABELS, 1, file, lambda *_: None)
    found = TextReadings.load(file)
    assert found.probabilities[1].tolist() == [1, 0]
    assert np.array_equal(found.probabilities[[0, 2]], whole.probabilities[[0, 2]])
    assert np.array_equal(found.hidden, whole.hidden)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["readings.npz", "whole.npz"]
