import math
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
    Report,
    Sample,
    Slope,
)
from load_tests.soak.traffic import CANARY, Tally

QUIET = Sample(
    0.0, rss_mib=900, engine_rss_mib=2500, files_to_redis=10, open_files=30, connections=1, tasks=12
)
ANSWERED = 6


def report(seconds: float = 600, service_growth: float = 0, engine_growth: float = 0, **after: Any) -> Report:
    """Of a run in which as much happened as must, memory grew so, in MiB an hour, and that left `after`."""
    samples = [
        replace(
            QUIET,
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
    return Report(seconds, 1, tally, faults, samples, QUIET, replace(QUIET, **after))


def wrong(found: Report, more_counted: float = 0, log: str = "") -> list[str]:
    found.judge(found.tally.sent.total() + more_counted, log)
    return found.wrong


def test_nothing_is_wrong_with_what_ends_as_it_began() -> None:
    found = report()
    assert wrong(found) == []
    assert found.told().endswith("all is well")


@pytest.mark.parametrize(
    ("after", "told"),
    [
        ({"open_files": 30 + MAX_MORE_FILES + 1}, "open files"),
        ({"files_to_redis": MAX_FILES_TO_REDIS + 1}, "sockets to Redis"),
        ({"tasks": 12 + MAX_MORE_TASKS + 1}, "tasks"),
        ({"connections": 4}, "connections"),
        ({"engine_rss_mib": 2500 + MAX_ENGINE_GROWTH_MIB + 1}, "engine core"),
    ],
)
def test_what_is_left_over_is_told(after: dict[str, float], told: str) -> None:
    [what] = wrong(report(**after))
    assert told in what
    less = {name: value - 1 for name, value in after.items()}
    assert wrong(report(**less)) == []


def test_growth_of_the_service_is_told_after_any_time() -> None:
    assert wrong(report(service_growth=MAX_GROWTH_MIB_PER_HOUR - 1)) == []
    [what] = wrong(report(service_growth=MAX_GROWTH_MIB_PER_HOUR + 1))
    assert "service: memory grows" in what


def test_growth_of_the_engine_is_told_once_it_has_settled() -> None:
    growth = MAX_GROWTH_MIB_PER_HOUR + 1
    short, long = report(600, engine_growth=growth), report(2 * ENGINE_SETTLES_S, engine_growth=growth)
    assert wrong(short) == []
    assert "not judged" in short.told()
    [what] = wrong(long)
    assert "engine core: memory grows" in what
    assert "not judged" not in long.told()


def test_a_slope_within_its_error_is_noise() -> None:
    seconds = [float(at) for at in range(0, 300, 5)]
    noisy = Slope.of(seconds, [900.0 + 40 * (number % 7 == 0) + at / 25 for number, at in enumerate(seconds)])
    assert noisy.per_hour > MAX_GROWTH_MIB_PER_HOUR
    assert not noisy.is_too_steep
    clean = Slope.of(seconds, [900.0 + at / 25 for at in seconds])
    assert clean.per_hour == pytest.approx(144)
    assert clean.is_too_steep


def test_requests_that_are_missing_are_told() -> None:
    lost = report()
    lost.tally.answered.clear()
    assert wrong(lost) == [f"{ANSWERED} requests were not answered"]
    assert wrong(report(), more_counted=1) == ["the service counted 18 requests, sent were 17"]


def test_a_soak_in_which_too_little_happened_tells_nothing() -> None:
    idle = report(600)
    idle.tally.pairs["scored"] -= 1
    idle.tally.left.clear()
    idle.tally.answered["score", 200] = idle.tally.sent.total()
    idle.faults.clear()
    del idle.samples[60:]
    assert [what.split(":")[0] for what in wrong(idle)] == [
        "pairs scored",
        "requests left",
        "faults",
        "samples",
    ]
    assert "faults: 0, and such a soak has more than 30" in idle.told()


@pytest.mark.parametrize("log", [f"a query: {CANARY}", "Traceback (most recent call last)", "unforeseen"])
def test_a_text_or_a_traceback_in_the_log_is_told(log: str) -> None:
    [what] = wrong(report(), log=log)
    assert what.startswith("the log holds")


def test_an_end_that_was_none_is_told() -> None:
    found = report()
    found.exit_code = 1
    assert wrong(found) == ["the service ended with 1"]
    assert "WRONG the service ended with 1" in found.told()
