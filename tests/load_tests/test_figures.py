import math
import random

import pytest

from load_tests.figures import finite_json, markdown_table, percentile, percentiles_ms, spread


def test_percentiles_are_nearest_ranks() -> None:
    rng = random.Random(1)
    seconds = [rng.lognormvariate(-3, 2) for _ in range(10_000)]
    found, ranked = percentiles_ms(seconds), sorted(seconds)
    for name, rank in (("p50", 5_000), ("p90", 9_000), ("p99", 9_900), ("max", 10_000)):
        assert found[name] == pytest.approx(1000 * ranked[rank - 1])


def test_percentile_of_no_values_is_nan() -> None:
    assert math.isnan(percentile([], 99))
    assert percentiles_ms([]) == {}


def test_spread_shows_minimum_median_and_maximum() -> None:
    assert spread([3.0, 1.0, 1000.0]) == "1.00 / 3.00 / 1,000.00"


def test_table_escapes_pipes() -> None:
    assert markdown_table([{"a|b": "c", "d": "e"}]) == "| a\\|b | d |\n| --- | --- |\n| c | e |"
    assert markdown_table([]) == ""


def test_json_has_no_nan_or_infinity() -> None:
    assert finite_json({"a": [math.nan, 1.0], "b": (math.inf, "x")}) == {"a": [None, 1.0], "b": [None, "x"]}
