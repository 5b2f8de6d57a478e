import math
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import linregress, t

from load_tests.soak.report import (
    ENGINE_SETTLES_S,
    MAX_ENGINE_GROWTH_MIB,
    MAX_FILES_TO_REDIS,
    MAX_GROWTH_MIB_PER_HOUR,
    MAX_MORE_FILES,
    MAX_MORE_TASKS,
    PARTS,
    Plan,
    Report,
    Sample,
    Slope,
)
from load_tests.soak.traffic import CANARY, Tally

IDLE = Sample(
    0.0, rss_mib=900, engine_rss_mib=2500, files_to_redis=10, open_files=30, connections=1, tasks=12
)
ANSWERED = 6


def report(seconds: float = 600, service_growth: float = 0, engine_growth: float = 0, **after: Any) -> Report:
    """Make the report of a run with sufficient activity, this growth of memory in MiB per hour, and `after` changed at its end."""
    samples = [
        replace(
            IDLE,
            seconds=at,
            rss_mib=900 + service_growth * at / 3600,
            engine_rss_mib=2500 + engine_growth * at / 3600,
        )
        for at in range(0, int(seconds), 5)
    ]
    left = math.floor(seconds / 60) + 1
    tally = Tally(
        sent=Counter(score=ANSWERED + left),
        answered=Counter({("score", 200): ANSWERED}),
        left=Counter(score=left),
        pairs=Counter(scored=math.floor(5 / 3 * seconds) + 1),
    )
    faults = {"Redis slow": math.floor(seconds / 20) + 1}
    idle_after = replace(IDLE, **after)
    return Report(Plan(seconds, seed=1), tally, faults, samples, IDLE, idle_after, tally.sent.total())


def wrong(found: Report, log: str = "") -> list[str]:
    found.judge(log)
    return found.wrong


def test_run_without_growth_passes() -> None:
    found = report()
    assert wrong(found) == []
    assert found.to_text().endswith("all checks passed")


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ({"open_files": 30 + MAX_MORE_FILES + 1}, "open files"),
        ({"files_to_redis": MAX_FILES_TO_REDIS + 1}, "connections to Redis"),
        ({"tasks": 12 + MAX_MORE_TASKS + 1}, "tasks"),
        ({"connections": 4}, "connections"),
        ({"engine_rss_mib": 2500 + MAX_ENGINE_GROWTH_MIB + 1}, "engine core"),
    ],
)
def test_leaks_are_reported(after: dict[str, float], expected: str) -> None:
    [what] = wrong(report(**after))
    assert expected in what
    less = {name: value - 1 for name, value in after.items()}
    assert wrong(report(**less)) == []


def test_memory_growth_of_the_service_is_always_checked() -> None:
    assert wrong(report(service_growth=MAX_GROWTH_MIB_PER_HOUR - 1)) == []
    [what] = wrong(report(service_growth=MAX_GROWTH_MIB_PER_HOUR + 1))
    assert "service: memory grows" in what


def test_memory_growth_of_the_engine_is_checked_once_it_has_settled() -> None:
    growth = MAX_GROWTH_MIB_PER_HOUR + 1
    short, long = report(600, engine_growth=growth), report(2 * ENGINE_SETTLES_S, engine_growth=growth)
    assert wrong(short) == []
    assert "not checked" in short.to_text()
    [what] = wrong(long)
    assert "engine core: memory grows" in what
    assert "not checked" not in long.to_text()


def test_slope_within_its_error_passes() -> None:
    seconds = [float(at) for at in range(0, 300, 5)]
    one_step = Slope.of(seconds, [900.0 + 40 * (at > 150) for at in seconds])
    assert one_step.per_hour > MAX_GROWTH_MIB_PER_HOUR
    assert not one_step.is_too_steep
    clean = Slope.of(seconds, [900.0 + at / 25 for at in seconds])
    assert clean.per_hour == pytest.approx(144)
    assert clean.is_too_steep


SECONDS = np.arange(0.0, 7200.0, 5.0)


def line(values: np.ndarray) -> Slope:
    """Fit a least-squares line to the means of PARTS blocks: what the soak's interval is compared with."""
    at, means = ([block.mean() for block in np.array_split(numbers, PARTS)] for numbers in (SECONDS, values))
    found = linregress(at, means)
    return Slope(found.slope * 3600, t.ppf(0.975, PARTS - 2) * found.stderr * 3600)


def excludes_zero(slope: Slope) -> bool:
    return "excludes zero" in str(slope)


def test_random_walk_is_no_trend_though_a_line_through_it_says_so() -> None:
    rng = np.random.default_rng(3)
    walks = [rng.normal(0, 0.3, SECONDS.size).cumsum() for _ in range(400)]
    assert sum(excludes_zero(line(walk)) for walk in walks) > 260
    assert sum(excludes_zero(Slope.of(SECONDS, walk)) for walk in walks) < 40  # 20 are expected


def test_one_step_is_no_trend_though_a_line_through_it_says_so() -> None:
    step = 3.5 * (SECONDS > 3000) + np.random.default_rng(3).normal(0, 0.05, SECONDS.size)
    assert excludes_zero(line(step))
    assert not excludes_zero(Slope.of(SECONDS, step))


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
def test_leak_of_3_mib_an_hour_is_found(noise: float) -> None:
    leak = 3 * SECONDS / 3600 + np.random.default_rng(3).normal(0, noise, SECONDS.size)
    assert excludes_zero(Slope.of(SECONDS, leak))


@pytest.mark.parametrize(("steps", "is_found"), [(1, False), (2, False), (8, True)])
def test_equal_steps_are_a_trend_if_they_are_many(steps: int, is_found: bool) -> None:
    borders = np.linspace(0, SECONDS[-1], steps + 2)[1:-1]
    assert excludes_zero(Slope.of(SECONDS, (SECONDS[:, None] > borders).sum(axis=1))) is is_found


def test_memory_that_stays_the_same_has_a_slope_of_zero() -> None:
    slope = Slope.of([float(at) for at in range(0, 300, 5)], [900.0] * 60)
    assert str(slope) == "+0.0 MiB/h [0.0, 0.0], which holds zero"


@pytest.mark.parametrize(("growth", "verdict"), [(0.0, "holds zero"), (50.0, "excludes zero")])
def test_report_says_whether_memory_grows(growth: float, verdict: str) -> None:
    rng = random.Random(1)
    long = report(10_800, engine_growth=growth)
    long.samples = [
        replace(sample, engine_rss_mib=sample.engine_rss_mib + rng.gauss(0, 3)) for sample in long.samples
    ]
    assert verdict in long.to_text().split("engine core")[1]


def test_first_twenty_minutes_of_a_long_run_are_warm_up() -> None:
    long = report(10_800)
    long.samples = [
        replace(sample, rss_mib=sample.rss_mib + min(sample.seconds, 1200) / 10) for sample in long.samples
    ]
    assert long.slopes["service"].per_hour == pytest.approx(0, abs=1e-6)


def test_soak_without_faults_needs_none_and_a_slow_one_less_traffic() -> None:
    slow = report(600)
    slow.plan = Plan(600, seed=1, faults=False, pace=0.5)
    slow.faults.clear()
    slow.tally.pairs["scored"] = 501
    assert wrong(slow) == []


def test_lost_requests_are_reported() -> None:
    lost = report()
    lost.tally.answered.clear()
    assert wrong(lost) == [f"{ANSWERED} requests were not answered"]


@pytest.mark.parametrize(("difference", "passes"), [(1, False), (0, True), (-11, True), (-12, False)])
def test_only_requests_of_clients_that_left_may_be_uncounted(difference: int, passes: bool) -> None:
    found = report()
    found.counted += difference
    assert (wrong(found) == []) is passes
    if not passes:
        [reason] = found.wrong
        assert f"the service counted {17 + difference} requests, but 17 were sent, 11 of them by" in reason


def test_soak_with_too_little_activity_fails() -> None:
    idle = report(600)
    idle.tally.pairs["scored"] -= 1
    idle.tally.left.clear()
    idle.tally.answered["score", 200] = idle.tally.sent.total()
    idle.faults.clear()
    del idle.samples[60:]
    assert [what.split(":")[0] for what in wrong(idle)] == [
        "pairs scored",
        "disconnected clients",
        "faults",
        "samples",
    ]
    assert "faults: 0, expected more than 30" in idle.to_text()


@pytest.mark.parametrize("log", [f"a query: {CANARY}", "Traceback (most recent call last)", "unforeseen"])
def test_request_text_or_traceback_in_the_log_fails(log: str) -> None:
    [what] = wrong(report(), log=log)
    assert what.startswith("the log contains")


def test_exit_code_other_than_0_fails() -> None:
    found = report()
    found.exit_code = 1
    assert wrong(found) == ["the service ended with exit code 1"]
    assert "WRONG the service ended with exit code 1" in found.to_text()
