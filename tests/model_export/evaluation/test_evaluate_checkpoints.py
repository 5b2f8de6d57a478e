from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from model_export.checkpoint.assemble import Plan, assemble
from model_export.data.prepare import Data
from model_export.data.prompting import PromptingError
from model_export.data.synthetic import CRITERIA, generate
from model_export.evaluation.evaluate import EvaluationError
from model_export.evaluation.evaluate_checkpoints import evaluate_checkpoints
from model_export.recipe import Precision
from service.contract.manifest import Manifest, read_manifest


@pytest.fixture(scope="module")
def data() -> Data:
    made = generate(1, 8, 4, 4)
    return Data(made.train, made.dev, made.long_tail, (CRITERIA,), {})


def test_checkpoints_are_evaluated_with_their_controls(tiny_base: Path, tmp_path: Path, data: Data) -> None:
    folders = [assemble(Plan(str(tiny_base), name=name), tmp_path / name) for name in ("first", "second")]
    measured = evaluate_checkpoints(folders, data, seed=1, draws=20, on_progress=lambda *_: None)
    found = measured.evaluation
    assert list(measured.fitted) == ["first", "second"]
    assert measured.fitted["first"].calibration.data == f"{len(data.dev)} dev pairs of synthetic"
    assert list(found.rows) == ["majority", "bm25", "first", "second"]
    assert found.controls == ("bm25", "majority", "second")
    assert found.rows["first"] == found.rows["second"]
    assert found.sizes["all"]["pairs"] == len(data.dev)


def test_fit_uses_the_criteria_of_the_checkpoint(tiny_base: Path, tmp_path: Path) -> None:
    made = generate(1, 8, 30, 4)
    # Two criteria with 60 pairs each; the checkpoint has neither.
    dev = tuple(
        replace(pair, criteria=("a-1", "b-1")[number // 4 % 2]) for number, pair in enumerate(made.dev)
    )
    data = Data(made.train, dev, made.long_tail, (CRITERIA,), {})
    folder = assemble(Plan(str(tiny_base), name="first"), tmp_path / "first")
    measured = evaluate_checkpoints([folder], data, seed=1, draws=20, on_progress=lambda *_: None)
    fitted = measured.fitted["first"]
    assert fitted.calibration.method == "temperature"
    assert fitted.calibration.temperatures == {}
    manifest = read_manifest(folder)
    Manifest.model_validate({**manifest.model_dump(), **fitted.to_json()})


def test_bfloat16_is_close_to_float32(tiny_base: Path, tmp_path: Path, data: Data) -> None:
    folder = assemble(Plan(str(tiny_base), name="first"), tmp_path / "first")
    figures = [
        evaluate_checkpoints(
            [folder], data, seed=1, draws=20, on_progress=lambda *_: None, precision=precision
        ).evaluation.rows["first"]["all"]["ece_before"]
        for precision in get_args(Precision)
    ]
    assert figures[0] == pytest.approx(figures[1], abs=0.02)
    assert figures[0] != figures[1]


def test_two_checkpoints_of_the_same_name_are_refused(tiny_base: Path, tmp_path: Path, data: Data) -> None:
    folder = assemble(Plan(str(tiny_base), name="same"), tmp_path / "same")
    with pytest.raises(EvaluationError, match="distinct names"):
        evaluate_checkpoints([folder, folder], data, seed=1, draws=20, on_progress=lambda *_: None)


def test_pair_that_does_not_fit_the_prompt_is_refused_before_measuring(
    tiny_base: Path, tmp_path: Path, data: Data
) -> None:
    folder = assemble(Plan(str(tiny_base), name="first"), tmp_path / "first")
    long = replace(data.dev[-1], query="word " * 1000)
    reported: list[str] = []
    with pytest.raises(
        PromptingError, match=f"first: pairs whose query is too long: {long.id} of .*: the query has"
    ):
        evaluate_checkpoints(
            [folder],
            replace(data, dev=(*data.dev[:-1], long)),
            seed=1,
            draws=20,
            on_progress=lambda stage, *_: reported.append(stage),
        )
    assert reported == []
