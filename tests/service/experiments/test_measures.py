"""The measures judge differences between counts in Prometheus's format."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from service.experiments.measures import Counts, Judgement, Windows, answer_quantiles, judge_all

BOUNDS = ("0.5", "1.0", "+Inf")


def counts(
    requests: float = 1000, errors: float = 20, slow: float = 50, shed: float = 30, grades: Any = None
) -> Counts:
    """Make the counts of one window. `grades` counts pairs, one for each request; the default has three grades."""
    return {
        "requests": {"200": requests - errors, "500": errors, "422": 7.0},
        "seconds": {"200": 0.2 * (requests - errors) + slow},
        "buckets": dict(
            zip(BOUNDS, (requests / 2, requests - errors - slow, requests - errors), strict=True)
        ),
        "outcomes": {"scored": requests - shed, "shed": shed / 2, "failed": shed / 2},
        "sources": {"engine": requests / 2, "local": requests / 4, "redis": requests / 4},
        "grades": grades or {"0": requests / 2, "2": requests / 4, "3": requests / 4},
    }


def arm(make: Callable[[random.Random], Counts], seed: int, windows: int = 24) -> Windows:
    chance = random.Random(seed)
    return {place: make(chance) for place in range(windows)}


def usual(chance: random.Random) -> Counts:
    graded = {str(grade): chance.uniform(200, 300) for grade in range(4)}
    return counts(
        errors=chance.uniform(10, 30), slow=chance.uniform(40, 60), shed=chance.uniform(20, 40), grades=graded
    )


def verdicts(control: Windows, treatment: Windows) -> dict[str, str]:
    return {each.name: each.verdict for each in judge_all(control, treatment)}


def judged(name: str, control: Windows, treatment: Windows) -> Judgement:
    [found] = [each for each in judge_all(control, treatment) if each.name == name]
    return found


def test_equal_arms_have_no_difference() -> None:
    assert set(verdicts(arm(usual, 1), arm(usual, 2)).values()) == {"no difference seen"}


@pytest.mark.parametrize(
    ("measure", "changed"),
    [
        ("errors (5xx)", lambda chance: counts(errors=chance.uniform(40, 60))),
        ("answers over 1 s", lambda chance: counts(slow=chance.uniform(90, 110))),
        ("mean answer time", lambda chance: counts(slow=chance.uniform(90, 110))),
        ("pairs not scored", lambda chance: counts(shed=chance.uniform(90, 110))),
    ],
)
def test_a_higher_measure_is_worse_and_a_lower_one_better(
    measure: str, changed: Callable[[random.Random], Counts]
) -> None:
    assert verdicts(arm(usual, 1), arm(changed, 2))[measure] == "worse"
    assert verdicts(arm(changed, 2), arm(usual, 1))[measure] == "better"


def test_grades_and_cache_hits_are_higher_or_lower_and_never_better() -> None:
    def lenient(chance: random.Random) -> Counts:
        cold = {"sources": {"engine": 900.0, "local": 100.0 + chance.random()}}
        graded = {str(grade): 200 + 50.0 * grade + chance.random() for grade in range(4)}
        return {**counts(grades=graded), **cold}

    found = verdicts(arm(usual, 1), arm(lenient, 2))
    assert found["mean grade"] == found["grade 3"] == "higher"
    assert found["grade 0"] == found["pairs from a cache"] == "lower"


def test_each_measure_is_in_its_unit() -> None:
    same = arm(lambda chance: counts(), 1)
    assert judged("errors (5xx)", same, same).control == pytest.approx(0.02), "4xx are left out"
    assert judged("answers over 1 s", same, same).control == pytest.approx(50 / 980)
    assert judged("mean answer time", same, same).control == pytest.approx(0.2 + 50 / 980)
    assert judged("pairs not scored", same, same).control == pytest.approx(0.03)
    assert judged("pairs from a cache", same, same).control == pytest.approx(0.5)
    assert judged("mean grade", same, same).control == pytest.approx(1.25)
    assert judged("grade 0", same, same).control == pytest.approx(0.5)


def test_nine_windows_are_not_judged() -> None:
    broken = arm(lambda chance: counts(errors=900), 2, windows=9)
    found = judged("errors (5xx)", arm(usual, 1), broken)
    assert (found.verdict, found.low, found.high) == ("too little data", None, None)
    assert found.difference is not None, "it is shown all the same"
    broken = arm(lambda chance: counts(errors=900), 2, windows=10)
    assert judged("errors (5xx)", arm(usual, 1), broken).verdict == "worse"


def test_fewer_than_ten_events_are_not_judged() -> None:
    none = arm(lambda chance: counts(errors=0), 1)
    few = {place: counts(errors=float(place < 9)) for place in range(24)}
    enough = {place: counts(errors=float(place < 20)) for place in range(24)}
    assert judged("errors (5xx)", none, few).verdict == "too little data"
    assert judged("errors (5xx)", none, enough).verdict == "worse"


def test_events_that_never_happen_are_no_difference() -> None:
    none = arm(lambda chance: counts(errors=0), 1)
    found = judged("errors (5xx)", none, none)
    assert (found.verdict, found.low) == ("no difference seen", None)


def test_windows_without_one_of_the_arms_are_left_out() -> None:
    control = {place: counts(errors=500.0 if place < 12 else 20.0) for place in range(36)}
    treatment = {place: counts(errors=20.0) for place in range(12, 36)}
    assert judged("errors (5xx)", control, treatment).control == pytest.approx(0.02)
    assert judged("errors (5xx)", control, {}).verdict == "too little data"


def test_the_confidence_holds_for_all_intervals_together() -> None:
    """Comparing equal arms, few tables may show any difference."""
    tables = [verdicts(arm(usual, seed), arm(usual, seed + 1000)) for seed in range(300)]
    wrong = sum(set(each.values()) != {"no difference seen"} for each in tables) / len(tables)
    print(f"{wrong:.1%} of the tables show a difference where there is none")
    assert wrong <= 0.09  # 5 %, and three standard deviations of chance


def test_latency_quantiles_are_of_all_windows_together() -> None:
    assert answer_quantiles(arm(lambda chance: counts(errors=0), 1).values()) == {
        "p50": pytest.approx(0.5),
        "p95": pytest.approx(1.0),
        "p99": pytest.approx(1.0),
    }
