from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from model_export.evaluation.evaluate import Predictions
from model_export.evaluation.predict import (
    by_reasoning,
    directly,
    make_predictions,
    read_predictions,
    write_predictions,
)
from model_export.models.reference_scorer import ReferenceScorer
from model_export.recipe import Precision
from model_export.teacher.rollout import Sampler, Sampling
from tests.tiny_teacher import TinyTeacher


def predict_directly(teacher: TinyTeacher, precision: Precision = "float32") -> Predictions:
    sampler = Sampler.load(teacher.base, teacher.prompting, precision)
    return directly("zero_shot", teacher.pairs, teacher.prompting, sampler, 3, lambda *_: None)


def predict_by_reasoning(teacher: TinyTeacher, max_tokens: int) -> Predictions:
    sampler = Sampler.load(teacher.folder, teacher.prompting)
    greedy = Sampling(max_tokens=max_tokens, temperature=0.0, batch_size=4)
    return by_reasoning("cot_sft", teacher.pairs, teacher.prompting, sampler, greedy, lambda *_: None)


def test_direct_predictions_equal_the_reference_scorer_s(tiny_teacher: TinyTeacher) -> None:
    prompting = tiny_teacher.prompting
    found = predict_directly(tiny_teacher)
    reference = ReferenceScorer.load(tiny_teacher.base, prompting.label_token_ids)
    prompts = [prompting.student_prompt(pair) for pair in tiny_teacher.pairs]
    expected = [each.probabilities for each in reference.distributions(prompts)]
    assert found.probabilities == pytest.approx(np.array(expected), abs=1e-5)
    assert (found.system, found.parsed) == ("zero_shot", None)


def test_bfloat16_is_close_to_float32_but_not_equal(tiny_teacher: TinyTeacher) -> None:
    found = [predict_directly(tiny_teacher, precision).probabilities for precision in get_args(Precision)]
    assert found[0] == pytest.approx(found[1], abs=0.02)
    assert (found[0] != found[1]).any()


def test_predictions_after_reasoning_equal_the_teacher_s(tiny_teacher: TinyTeacher) -> None:
    found = predict_by_reasoning(tiny_teacher, max_tokens=48)
    assert found.parsed is not None
    assert found.parsed.all()
    assert found.probabilities.argmax(1).tolist() == [pair.label for pair in tiny_teacher.pairs]
    assert found.probabilities.sum(1) == pytest.approx(np.ones(8))


def test_trace_that_does_not_parse_gives_a_uniform_row(tiny_teacher: TinyTeacher) -> None:
    found = predict_by_reasoning(tiny_teacher, max_tokens=3)
    assert found.parsed is not None
    assert not found.parsed.any()
    assert found.probabilities.tolist() == [[0.25] * 4] * 8


def test_pairs_are_ranked_by_expected_gain() -> None:
    probabilities = np.array([[0, 0, 0, 1.0], [0, 0, 1.0, 0], [0.5, 0, 0, 0.5], [1.0, 0, 0, 0]])
    assert make_predictions("x", probabilities, None).ranking == pytest.approx([1, 3 / 7, 0.5, 0])


@pytest.mark.parametrize("parsed", [None, np.array([True, False])])
def test_predictions_round_trip(tmp_path: Path, parsed: np.ndarray | None) -> None:
    written = make_predictions("rl", np.array([[0.1, 0.2, 0.3, 0.4], [0.25] * 4]), parsed)
    write_predictions(tmp_path / "predictions.npz", written)
    found = read_predictions(tmp_path / "predictions.npz", "rl")
    assert found.system == "rl"
    assert np.array_equal(found.probabilities, written.probabilities)
    assert np.array_equal(found.ranking, written.ranking)
    assert (found.parsed is None) == (parsed is None)
    assert found.parsed is None or np.array_equal(found.parsed, parsed)
