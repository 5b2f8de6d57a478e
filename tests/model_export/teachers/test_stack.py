from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from model_export.data.pairs import UNJUDGED, Pair
from model_export.data.sampling import fold_of
from model_export.evaluation.fit_calibration import expected_calibration_error
from model_export.teachers.stack import Stack, StackError
from service.contract.prompt import Note

FOLDS = 4


def predict(features: np.ndarray, pairs: Sequence[Pair], fitted_on: Sequence[bool]) -> np.ndarray:
    return Stack({"teacher": features}, pairs, fitted_on, FOLDS, 1.0).predict(["teacher"])


def made_pairs(count: int, source: str = "shop") -> tuple[list[Pair], np.ndarray]:
    """Return pairs, and features of which the first tells much of the grade, the second nothing."""
    random = np.random.default_rng(0)
    grades = random.integers(0, 4, count)
    features = np.column_stack([grades + random.normal(0, 0.7, count), random.normal(size=count)])
    pairs = [
        Pair(
            f"{source}{number}", f"{source} query {number // 5}", Note("", str(number)), grade, source, "c-1"
        )
        for number, grade in enumerate(grades.tolist())
    ]
    return pairs, features


def test_stack_predicts_grades_and_is_calibrated() -> None:
    pairs, features = made_pairs(2000)
    found = predict(features, pairs, [True] * 2000)
    gold = np.array([pair.label for pair in pairs])
    assert np.allclose(found.sum(axis=1), 1)
    assert np.mean(found.argmax(axis=1) == gold) > 0.55
    assert expected_calibration_error(found, gold) < 0.05


def test_labels_of_a_query_have_no_part_in_its_prediction() -> None:
    pairs, features = made_pairs(200)
    everything = [True] * 200
    before = predict(features, pairs, everything)
    changed = [replace(pair, label=3) if fold_of(pair, FOLDS, "stack") == 1 else pair for pair in pairs]
    after = predict(features, changed, everything)
    own = np.array([fold_of(pair, FOLDS, "stack") == 1 for pair in pairs])
    assert np.array_equal(before[own], after[own])
    assert not np.allclose(before[~own], after[~own])


@pytest.mark.parametrize("unjudged", [True, False])
def test_measured_and_unjudged_pairs_are_predicted_and_not_fitted_on(unjudged: bool) -> None:
    pairs, features = made_pairs(200)
    known = [number < 150 for number in range(200)]
    before = predict(features, pairs, known)
    hidden = [
        pair if here else replace(pair, label=UNJUDGED if unjudged else 3)
        for pair, here in zip(pairs, known, strict=True)
    ]
    assert np.array_equal(before, predict(features, hidden, known))


def test_features_of_measured_pairs_move_no_other_prediction() -> None:
    pairs, features = made_pairs(200)
    known = [number < 150 for number in range(200)]
    shifted = features.copy()
    shifted[150:] *= 9
    assert np.array_equal(predict(features, pairs, known)[:150], predict(shifted, pairs, known)[:150])


def test_sources_have_fits_of_their_own() -> None:
    shop, features = made_pairs(200)
    forum, _ = made_pairs(200, "forum")
    reversed_forum = [replace(pair, label=3 - pair.label) for pair in forum]
    both = np.concatenate([features, features])
    found = predict(both, [*shop, *reversed_forum], [True] * 400)
    alone = predict(features, shop, [True] * 200)
    assert np.allclose(found[:200], alone)


def test_some_of_the_teachers_predict_as_a_stack_of_these_alone() -> None:
    pairs, features = made_pairs(200)
    both = {"first": features[:, :1], "second": features[:, 1:]}
    stack = Stack(both, pairs, [True] * 200, FOLDS, 1.0)
    assert np.allclose(stack.predict(both), predict(features, pairs, [True] * 200))
    assert np.allclose(stack.predict(["second"]), predict(features[:, 1:], pairs, [True] * 200))


def test_source_with_one_grade_is_predicted_as_that_grade() -> None:
    pairs, features = made_pairs(100)
    same = [replace(pair, label=2) for pair in pairs]
    found = predict(features, same, [True] * 100)
    assert np.array_equal(found, np.tile([0.0, 0.0, 1.0, 0.0], (100, 1)))


def test_source_with_nothing_to_fit_on_is_an_error() -> None:
    pairs, features = made_pairs(4)
    with pytest.raises(StackError, match="source shop has no training pairs in fold"):
        predict(features, pairs, [True] * 4)
