"""Ratios are computed by round, and a missing ratio has a reason."""

import math

import pytest

from load_tests.bench.peer import Tuning
from load_tests.bench.records import (
    AUTO,
    OFFLINE,
    OURS,
    STUDENT,
    VECTORS,
    Measurement,
    Part,
    Records,
    agreement,
    compare,
    compute_ratios,
)
from tests.load_tests.bench.made_records import measurement


def records(
    rates: dict[tuple[Part, str], list[float]], tuning: Tuning = "tuned", p99_ms: float = 100.0
) -> Records:
    made: list[Measurement] = [
        measurement(part=part, peer=peer, tuning=tuning, round=number, pairs_per_s=rate, p99_ms=p99_ms)
        for (part, peer), series in rates.items()
        for number, rate in enumerate(series)
    ]
    return Records(measurements=made)


def test_ratio_is_per_round_against_the_fastest_peer() -> None:
    """The machine is slower in the second round, for both: a ratio of medians would hide that, ratios by round do not."""
    found = records({("cold", OURS): [20, 10, 30], ("cold", "a"): [10, 4, 10], ("cold", "b"): [1, 100, 1]})
    assert found.best_peer("cold") == "a"
    ratio = compute_ratios(found)["cold_vs_best_peer"]
    assert (ratio.value, ratio.low, ratio.high, ratio.rounds) == (2.5, 2.0, 3.0, 3)
    assert (ratio.over, ratio.under) == (OURS, "a")


def test_each_ratio_uses_its_own_part() -> None:
    found = records(
        {
            ("cold", OURS): [20], ("cold", "a"): [10],
            ("defaults", OURS): [30], ("defaults", "a"): [10],
            ("student", STUDENT): [40], ("student", "a"): [10],
            ("vectors", OURS): [20], ("vectors", VECTORS): [80], ("vectors", "a"): [10],
            ("unknown", OURS): [10], ("unknown", AUTO): [7],
            ("zipf", OURS): [50], ("zipf", VECTORS): [70], ("zipf", "a"): [10],
            ("offline", OURS): [9], ("offline", OFFLINE): [10],
        }
    )  # fmt: skip
    found.measurements += [
        measurement(part="p99", peer=OURS, p99_ms=50),
        measurement(part="p99", peer=VECTORS, p99_ms=20),
        measurement(part="p99", peer="a", p99_ms=300),
    ]
    assert {name: ratio.value for name, ratio in compute_ratios(found).items()} == {
        "cold_vs_best_peer": 2, "cold_vs_peer_defaults": 3, "student_vs_best_peer": 4, "zipf_vs_best_peer": 5,
        "vectors_vs_best_peer": 8, "vectors_vs_text": 4, "unknown_vs_text": 0.7, "zipf_vectors_vs_best_peer": 7,
        "http_vs_offline_engine": 0.9, "best_peer_p99_over_ours": 6, "best_peer_p99_over_vectors": 15,
    }  # fmt: skip


def test_best_peer_of_p99_has_the_lowest_p99() -> None:
    found = Records(
        [measurement(part="p99", peer=peer, p99_ms=p99) for peer, p99 in ((OURS, 50), ("a", 300), ("b", 200))]
    )
    assert found.best_peer("p99") == "b"
    assert compute_ratios(found)["best_peer_p99_over_ours"].value == 4


def test_unmeasured_ratio_is_none_with_a_reason() -> None:
    found = records({("cold", OURS): [20]})
    found.skipped["zipf"] = "zipf: not selected"
    ratios = compute_ratios(found)
    assert all(ratio.value is None and ratio.reason for ratio in ratios.values())
    assert ratios["zipf_vs_best_peer"].reason == "zipf: not selected"
    assert ratios["cold_vs_best_peer"].reason == "cold: no peer took part"
    assert "not both" in (ratios["http_vs_offline_engine"].reason or "")


@pytest.mark.parametrize("rate", [0.0, math.nan])
def test_peer_without_scores_gives_no_ratio(rate: float) -> None:
    ratio = compare(records({("cold", OURS): [20], ("cold", "a"): [rate]}), "cold", OURS, "a")
    assert ratio.value is None
    assert "scored nothing" in (ratio.reason or "")


def test_agreement_is_the_largest_difference_and_nan_for_a_missing_grade() -> None:
    found = agreement("a", "tuned", [1.0, 2.0], [1.1, 1.7])
    assert found.maximum == pytest.approx(0.3)
    assert found.mean == pytest.approx(0.2)
    assert math.isnan(agreement("a", "tuned", [1.0, 2.0], [1.0, math.nan]).maximum)
    assert math.isnan(agreement("a", "tuned", [], []).maximum)


def test_p99s_are_compared_at_the_highest_load() -> None:
    records = Records(
        [
            measurement(part="p99", peer=peer, p99_ms=p99, load=load)
            for peer, load, p99 in ((OURS, 0.4, 10), ("a", 0.4, 10), (OURS, 0.8, 20), ("a", 0.8, 60))
        ]
    )
    assert compute_ratios(records)["best_peer_p99_over_ours"].value == 3
