import numpy as np
import pytest
from sklearn.metrics import f1_score

from model_export.experiment.by_query import gains_by_query, gains_to_markdown
from model_export.experiment.measure import NO_GRADE, Reading
from tests.model_export.experiment.readings import readings

OWN = ("all", "shop")


def test_gains_are_averaged_over_the_seeds() -> None:
    found = {
        seed: {
            "sft": {0: readings(0.5, OWN), 50: readings(0.6, OWN)},
            "step": {0: readings(0.5, OWN), 50: readings(0.6 + gain, OWN, true=0.8)},
        }
        for seed, gain in ((1, 0.1), (2, 0.3))
    }
    gains = gains_by_query(found)
    assert list(gains) == ["all", "shop"]
    step = gains["shop"]["step"]
    assert step["accuracy"].mean == pytest.approx(0.2)
    assert step["true"].mean == pytest.approx(-0.1)
    table = gains_to_markdown(gains)
    assert "| shop | step | 0.200 [" in table


def test_macro_f1_is_scikit_learns_with_a_trace_that_does_not_parse_as_a_wrong_grade() -> None:
    random = np.random.default_rng(1)
    gold = random.integers(0, 4, 200)
    ours, others = (random.choice([NO_GRADE, 0, 1, 2, 3], 200) for _ in range(2))

    def read(grades: np.ndarray) -> list[Reading]:
        return [
            Reading(("all",), row // 4, int(gold[row]), int(grade), 0.0, True, True)
            for row, grade in enumerate(grades)
        ]

    gains = gains_by_query({1: {"sft": {50: read(others)}, "grpo": {50: read(ours)}}})
    expected = [f1_score(gold, each, labels=range(4), average="macro") for each in (ours, others)]
    assert gains["all"]["grpo"]["macro_f1"].mean == pytest.approx(expected[0] - expected[1])


def test_an_interval_is_that_of_the_spread_over_queries() -> None:
    """Each query has one pair: the gain is a mean of independent values, whose standard error is known."""
    random = np.random.default_rng(2)
    better = random.random(400) < 0.3

    def read(right: np.ndarray) -> list[Reading]:
        return [
            Reading(("all",), row, 1, 1 if each else 0, 0.0, True, True) for row, each in enumerate(right)
        ]

    found = {1: {"sft": {9: read(np.zeros(400))}, "step": {9: read(better)}}}
    gain = gains_by_query(found)["all"]["step"]["accuracy"]
    error = float(np.std(better)) / 400**0.5
    assert gain.high - gain.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_nothing_is_compared_without_shared_queries_or_supervised_arm() -> None:
    generated = {1: {"sft": {9: readings(0.5, ("random",))}, "step": {9: readings(0.6, ("random",))}}}
    assert gains_by_query(generated) == {}
    without_control = {1: {"step": {9: readings(0.6, OWN)}, "grpo": {9: readings(0.6, OWN)}}}
    assert gains_by_query(without_control) == {}
    assert gains_to_markdown({}) == ""
