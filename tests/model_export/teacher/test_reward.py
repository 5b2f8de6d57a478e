from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_export.data.pairs import Pair
from model_export.recipe_stages import RlConfig
from model_export.teacher.reward import ClassWeights, reward
from service.contract.prompt import Note
from service.contract.trace import parse_trace, write_step


def judged(gold: int) -> Pair:
    return Pair("1", "green tea", Note("tea", "black"), gold, "made", "c")


def reward_of(
    grade: int, gold: int, *, form: float = 0.1, distance: float = 0.0, weight: float = 1.0
) -> float:
    config = RlConfig(steps=1, format_weight=form, distance_weight=distance)
    return reward(parse_trace(f"Grade: {grade}", (), 3), judged(gold), config, weight)


@pytest.mark.parametrize(("grade", "expected"), [(0, 0.1), (1, 0.1), (2, 1.1), (3, 0.1)])
def test_exact_grade_and_format_are_rewarded(grade: int, expected: float) -> None:
    assert reward_of(grade, 2) == pytest.approx(expected)


@pytest.mark.parametrize(("grade", "expected"), [(0, 0.1), (1, 0.2), (2, 0.3), (3, 1.1)])
def test_nearer_grades_are_rewarded_more(grade: int, expected: float) -> None:
    # 0.3 falls with the distance, by 0.1 a grade; 0.7 is for the exact one, and 0.1 for the form.
    assert reward_of(grade, 3, distance=0.3) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("finding", "last", "expected"),
    [
        ('missing "green"', 2, 0.5 + 0.25),
        ('missing "tea"', 2, 0.25),
        ("a free text", 2, 0.25),  # cites nothing
        ('missing "green"', 1, 0.5),
        ('missing "tea"', 1, 0.0),
    ],
)
def test_true_and_consistent_traces_are_rewarded(finding: str, last: int, expected: float) -> None:
    config = RlConfig(steps=1, format_weight=0.0, truth_weight=0.5, consistency_weight=0.25)
    trace = parse_trace(write_step("topic", finding, last) + "Grade: 2", ("topic",), 3)
    assert reward(trace, judged(0), config) == expected


def test_unparsed_text_has_no_reward() -> None:
    config = RlConfig(
        steps=1, format_weight=1.0, distance_weight=1.0, truth_weight=1.0, consistency_weight=1.0
    )
    assert reward(None, judged(0), config) == 0.0


@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 3), st.integers(0, 3))
def test_reward_is_bounded_and_highest_for_gold(form: float, distance: float, grade: int, gold: int) -> None:
    found, best = (reward_of(each, gold, form=form, distance=distance) for each in (grade, gold))
    assert best == pytest.approx(1 + form)
    assert 0 <= found <= best + 1e-12


def test_class_weight_leaves_the_other_rewards_as_they_are() -> None:
    assert reward_of(2, 2, weight=3.0) == pytest.approx(3.1)
    assert reward_of(1, 2, weight=3.0) == pytest.approx(0.1)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_every_grade_of_a_source_weighs_the_same_in_sum(grades: list[int]) -> None:
    pairs, counts = [judged(grade) for grade in grades], Counter(grades)
    other = [replace(judged(0), source="other")] * 7
    weights = ClassWeights([*pairs, *other], RlConfig(steps=1))
    sums = [weights.of(judged(grade)) * count for grade, count in counts.items()]
    assert sums == pytest.approx([len(grades) / len(counts)] * len(counts))
    assert {weights.of(pair) for pair in other} == {1.0}
    unweighted = ClassWeights(pairs, RlConfig(steps=1, class_weighted=False))
    assert {unweighted.of(pair) for pair in pairs} == {1.0}
