from pathlib import Path
from typing import get_args

import numpy as np
import pytest

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

GREEDY = Sampling(max_tokens=48, temperature=0.0, batch_size=4)


def test_direct_predictions_equal_the_reference_scorer_s(tiny_teacher: TinyTeacher) -> None:
    reports: list[tuple[int, int]] = []
    prompting = tiny_teacher.prompting
    found = directly(
        "zero_shot",
        tiny_teacher.pairs,
        prompting,
        Sampler.load(tiny_teacher.base, prompting),
        3,
        lambda *numbers: reports.append(numbers),
    )
    reference = ReferenceScorer.load(tiny_teacher.base, prompting.label_token_ids)
    prompts = [prompting.student_prompt(pair) for pair in tiny_teacher.pairs]
    expected = [each.probabilities for each in reference.distributions(prompts)]
    assert found.probabilities == pytest.approx(np.array(expected), abs=1e-5)
    assert (found.system, found.parsed) == ("zero_shot", None)
    assert reports[-1] == (8, 8)


def reasoner(teacher: TinyTeacher) -> Sampler:
    return Sampler.load(teacher.folder, teacher.prompting)


def test_bfloat16_is_close_to_float32_but_not_equal(tiny_teacher: TinyTeacher) -> None:
    prompting = tiny_teacher.prompting
    found = [
        directly(
            "student",
            tiny_teacher.pairs,
            prompting,
            Sampler.load(tiny_teacher.base, prompting, precision),
            8,
            lambda *_: None,
        ).probabilities
        for precision in get_args(Precision)
    ]
    assert found[0] == pytest.approx(found[1], abs=0.02)
    assert (found[0] != found[1]).any()


def test_predictions_after_reasoning_equal_the_teacher_s(tiny_teacher: TinyTeacher) -> None:
    found = by_reasoning(
        "cot_sft", tiny_teacher.pairs, tiny_teacher.prompting, reasoner(tiny_teacher), GREEDY, lambda *_: None
    )
    assert found.parsed is not None
    assert found.parsed.all()
    assert found.probabilities.argmax(1).tolist() == [pair.label for pair in tiny_teacher.pairs]
    assert found.probabilities.sum(1) == pytest.approx(np.ones(8))


def test_trace_that_does_not_parse_gives_a_uniform_row(tiny_teacher: TinyTeacher) -> None:
    short = Sampling(max_tokens=3, temperature=0.0, batch_size=4)
    found = by_reasoning(
        "cot_sft", tiny_teacher.pairs, tiny_teacher.prompting, reasoner(tiny_teacher), short, lambda *_: None
    )
    assert found.parsed is not None
    assert not found.parsed.any()
    assert found.probabilities.tolist() == [[0.25] * 4] * 8


def test_pairs_are_ranked_by_expected_gain() -> None:
    probabilities = np.array([[0, 0, 0, 1.0], [0, 0, 1.0, 0], [0.5, 0, 0, 0.5], [1.0, 0, 0, 0]])
    assert make_predictions("x", probabilities, None).ranking == pytest.approx([1, 3 / 7, 0.5, 0])


@pytest.mark.parametrize("parsed", [None, np.array([True, False])])
def test_predictions_round_trip(tmp_path: Path, parsed: np.ndarray | None) -> None:
    written = make_predictions("sam", np.array([[0.1, 0.2, 0.3, 0.4], [0.25] * 4]), parsed)
    write_predictions(tmp_path / "predictions.npz", written)
    found = read_predictions(tmp_path / "predictions.npz", "sam")
    assert found.system == "sam"
    assert np.array_equal(found.probabilities, written.probabilities)
    assert np.array_equal(found.ranking, written.ranking)
    assert (found.parsed is None) == (parsed is None)
    assert found.parsed is None or np.array_equal(found.parsed, parsed)
