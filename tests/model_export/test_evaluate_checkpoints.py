from pathlib import Path

import pytest

from model_export.assemble import Plan, assemble
from model_export.evaluate import EvaluationError
from model_export.evaluate_checkpoints import evaluate_checkpoints
from model_export.prepare import Data
from model_export.synthetic import CRITERIA, generate


@pytest.fixture(scope="module")
def data() -> Data:
    made = generate(1, 8, 4, 4)
    return Data(made.train, made.dev, made.long_tail, (CRITERIA,), {})


def test_checkpoints_stand_beside_each_other_and_their_controls(
    tiny_base: Path, tmp_path: Path, data: Data
) -> None:
    folders = [assemble(Plan(str(tiny_base), name=name), tmp_path / name) for name in ("first", "second")]
    measured = evaluate_checkpoints(folders, data, seed=1, draws=20, on_progress=lambda *_: None)
    found = measured.evaluation
    assert list(measured.fitted) == ["first", "second"]
    assert measured.fitted["first"].calibration.data == f"{len(data.dev)} dev pairs of synthetic"
    assert list(found.rows) == ["majority", "bm25", "first", "second"]
    assert found.controls == ("bm25", "majority", "second")
    assert found.rows["first"] == found.rows["second"]
    assert found.sizes["all"]["pairs"] == len(data.dev)


def test_two_of_one_name_are_refused(tiny_base: Path, tmp_path: Path, data: Data) -> None:
    folder = assemble(Plan(str(tiny_base), name="same"), tmp_path / "same")
    with pytest.raises(EvaluationError, match="distinct names"):
        evaluate_checkpoints([folder, folder], data, seed=1, draws=20, on_progress=lambda *_: None)
