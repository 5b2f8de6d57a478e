import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from model_export.checkpoint.assemble import Plan, assemble
from model_export.data.pairs import Pair
from model_export.data.prepare import Data
from model_export.data.prompting import PromptForm, PromptingError
from model_export.data.synthetic import generate, tasks
from model_export.evaluation.evaluate import EvaluationError
from model_export.evaluation.evaluate_checkpoints import (
    Measured,
    evaluate_on_dev,
    evaluate_on_test,
    list_checkpoints,
    list_controls,
    list_models,
)
from model_export.progress import OnProgress
from model_export.recipe import Precision
from service.contract.manifest import Calibration, Manifest, read_manifest
from tests.tiny_teacher import micro_recipe


def nothing(*_: object) -> None:
    pass


@pytest.fixture(scope="module")
def data() -> Data:
    made = generate(1, 8, 4, 4)
    return Data(made.train, made.dev, made.long_tail, (tasks("three")[0].criteria,), {})


@pytest.fixture(scope="module")
def first(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return assemble(Plan(str(tiny_base), name="first"), tmp_path_factory.mktemp("checkpoints") / "first")


def measure(folders: list[Path], data: Data, on_progress: OnProgress = nothing, **options: Any) -> Measured:
    systems = [*list_controls(data, [], on_progress), *list_checkpoints(folders, on_progress, **options)]
    return evaluate_on_dev(systems, "first", data, seed=1, draws=20)


def test_checkpoints_are_evaluated_with_their_controls(
    tiny_base: Path, first: Path, tmp_path: Path, data: Data
) -> None:
    second = assemble(Plan(str(tiny_base), name="second"), tmp_path / "second")
    measured = measure([first, second], data)
    found = measured.evaluation
    assert list(measured.fitted) == ["majority", "bm25", "first", "second"]
    assert measured.fitted["first"].calibration.data == f"{len(data.dev)} dev pairs of synthetic"
    assert list(found.rows) == ["majority", "bm25", "first", "second"]
    assert found.controls == ("bm25", "majority", "second")
    assert found.rows["first"] == found.rows["second"]
    assert found.sizes["all"]["pairs"] == len(data.dev)


def test_test_pairs_are_graded_as_served_and_fit_nothing(
    tiny_base: Path, tiny_encoder: Path, first: Path, tmp_path: Path, data: Data
) -> None:
    calibrated = tmp_path / "calibrated"
    shutil.copytree(first, calibrated)
    calibration = Calibration(name="t", method="temperature", temperature=4.0)
    manifest = read_manifest(first).model_copy(update={"calibration": calibration})
    (calibrated / "manifest.json").write_text(manifest.model_dump_json(), encoding="utf-8")
    form = PromptForm.of(micro_recipe().model, data.criteria)
    systems = [
        *list_controls(data, [str(tiny_encoder)], nothing),
        *list_checkpoints([calibrated], nothing),
        *list_models({"plain": tiny_base}, form, nothing),
    ]
    other = generate(2, 8, 20, 4).dev

    def measure_on(pairs: Sequence[Pair]) -> Measured:
        return evaluate_on_test(systems, "first", data, pairs, frozenset(), seed=1, draws=20)

    whole, half = measure_on(other), measure_on(other[:40])
    assert whole.fitted == half.fitted
    assert whole.fitted["first"].calibration.temperature == 4.0
    assert whole.fitted["plain"].calibration.data == f"{len(data.dev)} dev pairs of synthetic"
    assert list(whole.evaluation.rows) == ["majority", "bm25", "tiny-encoder", "first", "plain"]
    row = whole.evaluation.rows["first"]["all"]
    assert row["ece_after"] != pytest.approx(row["ece_before"])
    # The checkpoint ships no decisions, so it is served with the most probable grade.
    assert row["qwk_decided"] == row["qwk"]


def test_cross_encoder_is_measured_among_the_models(
    first: Path, tiny_bert: Path, tmp_path: Path, data: Data
) -> None:
    from sentence_transformers import CrossEncoder

    CrossEncoder(str(tiny_bert), num_labels=4, device="cpu").save_pretrained(str(tmp_path))
    form = PromptForm.of(micro_recipe().model, data.criteria)
    systems = [*list_checkpoints([first], nothing), *list_models({"cross_encoder": tmp_path}, form, nothing)]
    measured = evaluate_on_dev(systems, "first", data, seed=1, draws=20)
    assert list(measured.evaluation.rows) == ["first", "cross_encoder"]
    assert measured.fitted["cross_encoder"].calibration.data == f"{len(data.dev)} dev pairs of synthetic"


def test_fit_uses_the_criteria_of_the_checkpoint(first: Path) -> None:
    made = generate(1, 8, 30, 4)
    # Two criteria with 60 pairs each; the checkpoint has neither.
    dev = tuple(
        replace(pair, criteria=("a-1", "b-1")[number // 4 % 2]) for number, pair in enumerate(made.dev)
    )
    fitted = measure(
        [first], Data(made.train, dev, made.long_tail, (tasks("three")[0].criteria,), {})
    ).fitted["first"]
    assert fitted.calibration.method == "temperature"
    assert fitted.calibration.temperatures == {}
    Manifest.model_validate({**read_manifest(first).model_dump(), **fitted.to_json()})


def test_bfloat16_is_close_to_float32(first: Path, data: Data) -> None:
    figures = [
        measure([first], data, precision=precision).evaluation.rows["first"]["all"]["ece_before"]
        for precision in get_args(Precision)
    ]
    assert figures[0] == pytest.approx(figures[1], abs=0.02)
    assert figures[0] != figures[1]


def test_two_checkpoints_of_the_same_name_are_refused(first: Path, data: Data) -> None:
    with pytest.raises(EvaluationError, match="distinct names"):
        measure([first, first], data)


def test_pair_that_does_not_fit_the_prompt_is_refused_before_measuring(first: Path, data: Data) -> None:
    long = replace(data.dev[-1], query="word " * 1000)
    reported: list[object] = []
    complaint = f"first: pairs whose query is too long: {long.id} of .*: the query has"
    with pytest.raises(PromptingError, match=complaint):
        measure(
            [first],
            replace(data, dev=(*data.dev[:-1], long)),
            on_progress=lambda *step: reported.append(step),
        )
    assert reported == []
