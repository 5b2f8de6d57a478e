from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from model_export.data.synthetic import generate
from model_export.evaluation.predict import by_log_probabilities
from model_export.models.encoders import EncoderError
from model_export.recipe import Precision
from model_export.recipe_stages import CrossEncoderConfig
from model_export.teachers.base import Learner
from model_export.teachers.cross_encoder import CrossEncoderTeacher, is_cross_encoder


class StoppedError(Exception):
    pass


# All about one thing: so small a model does not learn in seconds to compare two.
MADE = generate(1, 300, 80, 8)
TRAIN, DEV = ([pair for pair in pairs if "lamp" in pair.query] for pairs in (MADE.train, MADE.dev))


def nothing(*_: object) -> None:
    pass


def make_teacher(
    base: Path | str, *, precision: Precision = "float32", **settings: object
) -> CrossEncoderTeacher:
    stated = {"base": str(base), "steps": 6, "batch_size": 8, "learning_rate": 1e-3, "max_tokens": 48}
    return CrossEncoderTeacher(CrossEncoderConfig.model_validate(stated | settings), precision, 1)


@pytest.fixture(scope="module")
def trained(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    make_teacher(tiny_bert).train(TRAIN, None, folder, nothing)
    return folder


def test_it_learns_grades_of_pairs_that_it_has_not_seen(tiny_bert: Path, tmp_path: Path) -> None:
    teacher = make_teacher(tiny_bert, steps=100, batch_size=32, smoothing=0.0)
    teacher.train(TRAIN, None, tmp_path, nothing)
    gold = np.array([pair.label for pair in DEV])
    prior = np.bincount([pair.label for pair in TRAIN]) / len(TRAIN)
    loss = -teacher.load(tmp_path, nothing)(DEV)[np.arange(len(gold)), gold].mean()
    assert loss < 0.9 * -np.log(prior[gold]).mean()


def test_features_are_the_log_probabilities_of_the_grades_in_order(tiny_bert: Path, trained: Path) -> None:
    teacher: Learner = make_teacher(tiny_bert)
    assert isinstance(teacher, Learner)
    found = teacher.load(trained, nothing)(DEV[:30])
    assert (found.shape, found.dtype) == ((30, 4), np.float64)
    assert np.exp(found).sum(axis=1) == pytest.approx(np.ones(30))
    assert teacher.load(trained, nothing)(DEV[29:30]) == pytest.approx(found[29:], abs=1e-5)
    predicted = by_log_probabilities(teacher.name, found)
    assert predicted.system == "cross_encoder"
    assert predicted.ranking == pytest.approx(np.exp(found) @ [0, 1 / 7, 3 / 7, 1])


def test_bfloat16_is_close_to_float32(tiny_bert: Path, trained: Path) -> None:
    figures = [
        make_teacher(tiny_bert, precision=precision).load(trained, nothing)(DEV[:30])
        for precision in get_args(Precision)
    ]
    assert figures[0] == pytest.approx(figures[1], abs=0.02)
    assert (figures[0] != figures[1]).any()


def test_killed_training_resumes_to_the_same_weights(tiny_bert: Path, trained: Path, tmp_path: Path) -> None:
    def stop(_: str, done: int, __: int) -> None:
        if done == 5:
            raise StoppedError

    with pytest.raises(StoppedError):
        make_teacher(tiny_bert, save_steps=2).train(TRAIN, None, tmp_path, stop)
    seen: list[int] = []
    resumed = make_teacher(tiny_bert, save_steps=2)
    resumed.train(TRAIN, None, tmp_path, lambda _, done, __: seen.append(done))
    assert seen == [5, 6]
    assert (tmp_path / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
    assert not (tmp_path / "state").exists()


def test_folder_is_a_cross_encoder_and_has_no_card(trained: Path, tiny_bert: Path) -> None:
    assert is_cross_encoder(trained)
    assert not is_cross_encoder(tiny_bert)
    assert not (trained / "README.md").exists()


def test_trained_reranker_with_one_output_can_be_the_base(tiny_bert: Path, tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder

    CrossEncoder(str(tiny_bert), num_labels=1, device="cpu").save_pretrained(str(tmp_path / "reranker"))
    with pytest.raises(
        EncoderError, match="reranker has 1 as its number of outputs, which must be 4, the number of grades"
    ):
        make_teacher(tiny_bert).load(tmp_path / "reranker", nothing)(DEV[:2])
    teacher = make_teacher(str(tmp_path / "reranker"), steps=1)
    teacher.train(TRAIN[:8], None, tmp_path, nothing)
    assert teacher.load(tmp_path, nothing)(DEV[:2]).shape == (2, 4)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"base": "nowhere/at/all"}, "the encoder nowhere/at/all can't be loaded: .* Use minilm"),
        ({"max_tokens": 65}, r"cross_encoder\.max_tokens is 65, and .*tiny-bert reads at most 64"),
    ],
)
def test_unusable_base_is_refused(
    settings: dict[str, Any], complaint: str, tiny_bert: Path, tmp_path: Path
) -> None:
    with pytest.raises(EncoderError, match=complaint):
        make_teacher(**{"base": tiny_bert, **settings}).train(TRAIN[:8], None, tmp_path, nothing)
