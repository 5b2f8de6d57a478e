import math
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from load_tests.soak.report import (
    ENGINE_SETTLES_S,
    MAX_ENGINE_GROWTH_MIB,
    MAX_FILES_TO_REDIS,
    MAX_GROWTH_MIB_PER_HOUR,
    MAX_MORE_FILES,
    MAX_MORE_TASKS,
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
    noisy = Slope.of(seconds, [900.0 + 40 * (number % 7 == 0) + at / 25 for number, at in enumerate(seconds)])
    assert noisy.per_hour > MAX_GROWTH_MIB_PER_HOUR
    assert not noisy.is_too_steep
    clean = Slope.of(seconds, [900.0 + at / 25 for at in seconds])
    assert clean.per_hour == pytest.approx(144)
    assert clean.is_too_steep


def test_interval_of_a_slope_covers_the_true_growth_though_neighbouring_samples_are_alike() -> None:
    rng = random.Random(3)
    covered = 0
    for _ in range(200):
        steps = [rng.gauss(0, 5) for _ in range(72)]  # each lasts a hundred seconds, as a burst's memory does
        seconds = [5.0 * number for number in range(len(steps) * 20)]
        slope = Slope.of(seconds, [900 + steps[int(at / 100)] + 10 * at / 3600 for at in seconds])
        covered += abs(slope.per_hour - 10) <= slope.margin
    assert covered >= 180  # 95 % are expected


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
