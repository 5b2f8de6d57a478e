import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_export.teacher.reward import Reward
from service.contract.trace import Trace


def trace(grade: int) -> Trace:
    return Trace((), grade, (0, 8))


@pytest.mark.parametrize(("grade", "expected"), [(0, 0.1), (1, 0.1), (2, 1.1), (3, 0.1)])
def test_exact_grade_and_format_are_rewarded(grade: int, expected: float) -> None:
    assert Reward(0.1, 0.0, 3).of(trace(grade), 2) == pytest.approx(expected)


@pytest.mark.parametrize(("grade", "expected"), [(0, 0.1), (1, 0.2), (2, 0.3), (3, 1.1)])
def test_nearer_grades_are_rewarded_more(grade: int, expected: float) -> None:
    # 0.3 falls with the distance, by 0.1 a grade; 0.7 is for the exact one, and 0.1 for the form.
    assert Reward(0.1, 0.3, 3).of(trace(grade), 3) == pytest.approx(expected)


def test_unparsed_text_has_no_reward() -> None:
    assert Reward(1.0, 1.0, 3).of(None, 0) == 0.0


@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 3), st.integers(0, 3))
def test_reward_is_bounded_and_highest_for_gold(form: float, distance: float, grade: int, gold: int) -> None:
    reward = Reward(form, distance, 3)
    assert 0 <= reward.of(trace(grade), gold) <= 1 + form + 1e-12
    assert reward.of(trace(gold), gold) == pytest.approx(1 + form)
    assert reward.of(trace(grade), gold) <= reward.of(trace(gold), gold) + 1e-12
