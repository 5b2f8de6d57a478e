import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_export.recipe import RlConfig
from model_export.teacher.reward import reward
from service.contract.trace import Trace


def reward_of(grade: int, gold: int, *, form: float = 0.1, distance: float = 0.0) -> float:
    config = RlConfig(steps=1, format_weight=form, distance_weight=distance)
    return reward(Trace((), grade, (0, 8)), gold, config)


@pytest.mark.parametrize(("grade", "expected"), [(0, 0.1), (1, 0.1), (2, 1.1), (3, 0.1)])
def test_exact_grade_and_format_are_rewarded(grade: int, expected: float) -> None:
    assert reward_of(grade, 2) == pytest.approx(expected)


@pytest.mark.parametrize(("grade", "expected"), [(0, 0.1), (1, 0.2), (2, 0.3), (3, 1.1)])
def test_nearer_grades_are_rewarded_more(grade: int, expected: float) -> None:
    # 0.3 falls with the distance, by 0.1 a grade; 0.7 is for the exact one, and 0.1 for the form.
    assert reward_of(grade, 3, distance=0.3) == pytest.approx(expected)


def test_unparsed_text_has_no_reward() -> None:
    assert reward(None, 0, RlConfig(steps=1, format_weight=1.0, distance_weight=1.0)) == 0.0


@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 3), st.integers(0, 3))
def test_reward_is_bounded_and_highest_for_gold(form: float, distance: float, grade: int, gold: int) -> None:
    found, best = (reward_of(each, gold, form=form, distance=distance) for each in (grade, gold))
    assert best == pytest.approx(1 + form)
    assert 0 <= found <= best + 1e-12
