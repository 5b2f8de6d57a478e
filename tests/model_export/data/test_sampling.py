from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from model_export.data.pairs import UNJUDGED, Pair
from model_export.data.sampling import balance, mix, pick, pick_distinct, repeat, sample_dev, sample_queries
from model_export.recipe_stages import DistilConfig
from service.contract.prompt import Note


def make_pairs(**sizes: int) -> list[Pair]:
    return [
        Pair(f"{source}-{number}", "red lamp", Note("lamp", "red"), 2, source, "general-1")
        for source, size in sizes.items()
        for number in range(size)
    ]


PAIRS = make_pairs(large=64, small=4)


def config(**changes: Any) -> DistilConfig:
    return DistilConfig.model_validate({"steps": 10, "batch_size": 2, **changes})


def sources(pairs: Iterable[Pair]) -> dict[str, int]:
    return Counter(pair.source for pair in pairs)


@pytest.mark.parametrize(("exponent", "small"), [(0.0, 64), (0.5, 16), (0.75, 8)])
def test_source_share_is_a_power_of_its_size(exponent: float, small: int) -> None:
    balanced = balance(PAIRS, exponent, seed=1)
    assert sources(balanced) == {"large": 64, "small": small}
    # Each pair of it as often as the others.
    assert set(Counter(pair.id for pair in balanced if pair.source == "small").values()) == {small // 4}
    assert {pair.id for pair in balanced} == {pair.id for pair in PAIRS}


def test_exponent_of_one_keeps_the_pairs() -> None:
    assert balance(PAIRS, 1.0, seed=1) == PAIRS
    assert pick(PAIRS, config(), seed=1) == mix(PAIRS, {"large-3"}, config(), seed=1) == PAIRS
    assert balance([], 0.5, seed=1) == []


def test_pairs_repeat_and_the_rest_is_random() -> None:
    pairs = make_pairs(small=4)
    times = [Counter(pair.id for pair in repeat(pairs, 10, Random(seed))) for seed in (1, 1, 2)]
    assert [sorted(each.values()) for each in times] == [[2, 2, 3, 3]] * 3
    assert times[0] == times[1] != times[2]


def test_smaller_epoch_is_sampled_from_balanced_pairs() -> None:
    drawn = [pick(PAIRS, config(pairs=32, source_exponent=0.0), seed) for seed in (1, 1, 2)]
    assert [len(pairs) for pairs in drawn] == [32] * 3
    assert drawn[0] == drawn[1] != drawn[2]
    # 2 of 32, were they drawn as they are; half of them where both sources are read alike often.
    assert all(8 <= sources(pairs)["small"] <= 24 for pairs in drawn)


def test_distinct_pairs_are_balanced_while_they_last() -> None:
    drawn = pick_distinct(PAIRS, 16, 0.0, seed=1)
    assert len({pair.id for pair in drawn}) == len(drawn) == 16
    assert sources(drawn)["small"] == 4
    assert sources(pick_distinct(PAIRS, 1000, 0.0, seed=1)) == sources(PAIRS)


@pytest.mark.parametrize(("share", "labelled"), [(1, 20), (0.5, 10), (0.05, 1)])
def test_labelled_pairs_repeat_up_to_their_share(share: float, labelled: int) -> None:
    known = {"large-3", "large-5"}
    ids = [pair.id for pair in mix(PAIRS, known, config(traced_share=share), seed=1)]
    assert len(ids) == 20
    assert sum(id_ in known for id_ in ids) == labelled
    # Others are many enough: none twice.
    others = [id_ for id_ in ids if id_ not in known]
    assert len(set(others)) == len(others)


def test_unlabelled_pairs_are_balanced_too() -> None:
    settings = config(steps=100, traced_share=0.5, source_exponent=0.0)
    mixed = mix(PAIRS, {"large-3"}, settings, seed=1)
    assert sources(pair for pair in mixed if pair.id != "large-3")["small"] == pytest.approx(50, abs=15)


def test_unjudged_pairs_have_their_share_beside_traced_and_judged_ones() -> None:
    mined = [replace(pair, id=f"mined-{pair.id}", label=UNJUDGED) for pair in PAIRS]
    settings = config(steps=100, traced_share=0.2, unlabelled_share=0.5, source_exponent=0.0)
    mixed = mix([*PAIRS, *mined], {"large-3"}, settings, seed=1)
    total = settings.steps * settings.batch_size
    open_ones = [pair for pair in mixed if pair.label == UNJUDGED]
    assert (len(mixed), len(open_ones)) == (total, total // 2)
    assert sum(pair.id == "large-3" for pair in mixed) == total // 5
    assert sources(open_ones)["small"] == pytest.approx(total // 4, rel=0.3)
    # Without traces the two others share all.
    assert sum(pair.label == UNJUDGED for pair in mix([*PAIRS, *mined], set(), settings, seed=1)) == round(
        total * 0.5 / 0.8
    )


@pytest.mark.parametrize("known", [set(), {pair.id for pair in PAIRS}])
def test_missing_kind_is_replaced_by_the_other(known: set[str]) -> None:
    assert mix(PAIRS, known, config(traced_share=0.5), seed=1) == PAIRS


def test_pairs_are_mixed_by_the_seed() -> None:
    drawn = [mix(PAIRS, {"large-3"}, config(traced_share=0.5), seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def pairs_of(*queries: str) -> list[Pair]:
    return [Pair(str(n), query, Note("", "b"), 0, "s", "c") for n, query in enumerate(queries)]


@pytest.mark.parametrize(("most", "expected"), [(None, 6), (6, 6), (9, 6), (5, 4), (4, 4), (3, 2), (1, 2)])
def test_whole_queries_are_sampled_up_to_the_limit_and_at_least_one(most: int | None, expected: int) -> None:
    pairs = pairs_of("a", "b", "c", "a", "b", "c")
    taken = sample_queries(pairs, most, Random(1))
    assert len(taken) == expected
    assert all([pair.query for pair in taken].count(pair.query) == 2 for pair in taken)


@pytest.mark.parametrize(("most", "expected"), [(None, [4, 12]), (8, [4, 3]), (6, [3, 3]), (1, [1, 3])])
def test_dev_sample_is_shared_equally_by_sources(most: int | None, expected: list[int]) -> None:
    short = pairs_of(*"abcd")
    long = [replace(pair, source="long") for pair in pairs_of(*"xxxyyyzzzwww")]
    taken = sample_dev([*short, *long], most, Random(1))
    assert [sum(pair.source == source for pair in taken) for source in ("s", "long")] == expected
