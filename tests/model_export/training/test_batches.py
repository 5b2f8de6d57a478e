from collections import Counter
from typing import Any

import pytest
import torch
from transformers import PretrainedConfig

from model_export.training.batches import (
    IGNORED,
    NO_GROUP,
    Example,
    collate,
    plan_order,
)

CONFIG = PretrainedConfig()
HEAD = [11, 12] * 40  # long enough to be shared


def test_batch_matches_one_written_by_hand() -> None:
    student = Example([*HEAD, 7], [5, 13, 3], [0.1, 0.7, 0.1, 0.1], 1, "lamps", [1.0, 20.0, 1.0])
    warm_up = Example([*HEAD, 9], [10, 3], None, 2)
    control = Example([8, 8], [], [0.0, 0.0, 0.0, 1.0], 3)
    batch = collate(list(enumerate([student, warm_up, control])), 4, CONFIG)
    x = IGNORED
    names = (
        "input_ids",
        "position_ids",
        "logits_to_keep",
        "targets",
        "weights",
        "starts",
        "labels",
        "groups",
    )
    assert {name: batch[name].tolist() for name in names} == {
        # The prefix of the first two, and then the rest of each.
        "input_ids": [[*HEAD, 7, 5, 13, 3, 9, 10, 3, 8, 8]],
        "position_ids": [[*range(80), 80, 81, 82, 83, 80, 81, 82, 0, 1]],
        "logits_to_keep": [80, 81, 82, 84, 85, 88],
        # Of the student's grade the soft label alone is learned.
        "targets": [x, 13, 3, 10, 3, x],
        "weights": [1.0, 20.0, 1.0, 1.0, 1.0, 1.0],
        "starts": [0, 3, 5],
        "labels": [1, 2, 3],
        "groups": [0, NO_GROUP, NO_GROUP],
    }
    soft = torch.tensor([[0.1, 0.7, 0.1, 0.1], [0.0] * 4, [0.0, 0.0, 0.0, 1.0]])
    assert torch.equal(batch["soft_labels"], soft)


def test_groups_are_numbered_within_their_batch_and_need_soft_labels() -> None:
    soft = [0.25] * 4
    made = [("b", soft), (None, soft), ("a", soft), ("b", soft), ("a", None)]
    examples = [Example([1], [], label, 0, group) for group, label in made]
    assert collate(list(enumerate(examples)), 4, CONFIG)["groups"].tolist() == [0, NO_GROUP, 1, 0, NO_GROUP]


def test_cached_activations_take_the_place_of_token_ids() -> None:
    examples = [Example([*HEAD, 9, 9], [5, 3], None, 0), Example([*HEAD, 7], [4, 4, 3], None, 1)]
    one, other = torch.arange(168.0).view(84, 2), 168 - torch.arange(168.0).view(84, 2)
    other[:80] = one[:80]  # the shared tokens'
    outputs = [torch.ones(1, 2), one, other]
    numbered = [(2, examples[0]), (1, examples[1])]
    ids, batch = collate(numbered, 4, CONFIG), collate(numbered, 4, CONFIG, outputs)
    assert set(batch) ^ set(ids) == {"input_ids", "inputs_embeds"}
    assert ids["input_ids"].tolist() == [[*HEAD, 9, 9, 5, 3, 7, 4, 4, 3]]
    assert batch["inputs_embeds"][0].equal(torch.cat([other, one[80:]]))


@pytest.mark.parametrize(
    ("count", "batch_size", "steps"), [(40, 4, 25), (10, 4, 12), (3, 8, 4), (1, 3, 2), (8, 8, 3)]
)
def test_order_repeats_no_example_within_an_epoch(count: int, batch_size: int, steps: int) -> None:
    lengths = [7 * index % 13 for index in range(count)]
    order = plan_order(lengths, batch_size, steps, seed=1)
    assert len(order) == batch_size * steps
    assert order == plan_order(lengths, batch_size, steps, seed=1)
    whole = max(count // batch_size, 1) * batch_size
    for start in range(0, len(order) - whole + 1, whole):
        seen = Counter(order[start : start + whole])
        assert max(seen.values()) <= max(-(-batch_size // count), 1)


def test_order_covers_all_examples_and_depends_on_the_seed() -> None:
    lengths = [1] * 10
    assert set(plan_order(lengths, 4, 20, seed=1)) == set(range(10))
    assert plan_order(lengths, 4, 20, seed=1) != plan_order(lengths, 4, 20, seed=2)


def test_the_longest_examples_are_learned_too() -> None:
    assert set(plan_order(range(300), 16, 100, seed=1)) == set(range(300))


def test_batches_have_similar_lengths_in_random_order() -> None:
    lengths = [index * 37 % 80 for index in range(80)]
    order = plan_order(lengths, 8, 10, seed=1)
    batches = [[lengths[i] for i in order[start : start + 8]] for start in range(0, 80, 8)]
    assert all(max(batch) - min(batch) == 7 for batch in batches)
    assert batches != sorted(batches)


# Queries of 1 to 9 pairs, and 11 examples outside of any group.
GROUPS = [f"q{size}" for size in range(1, 10) for _ in range(size)] + [None] * 11
MIXED: dict[str, Any] = {"groups": GROUPS, "group_size": 4}


def grouped_batches(seed: int = 1, *, steps: int = 28) -> list[list[int]]:
    lengths = [index * 37 % 23 for index in range(len(GROUPS))]
    order = plan_order(lengths, 8, steps, seed, **MIXED)
    return [order[start : start + 8] for start in range(0, len(order), 8)]


def test_groups_stay_together() -> None:
    batches = grouped_batches()  # four epochs
    assert {len(set(batch)) for batch in batches} == {8}
    assert grouped_batches() == batches != grouped_batches(seed=2)
    together = Counter(
        (group, sum(GROUPS[i] == group for i in batch)) for batch in batches for group in set(GROUPS)
    )
    # Each epoch has two parts of 4 and one of 1, or one of 4 and one of 3; a batch cuts few of them.
    assert together["q9", 4] + 2 * together["q9", 8] + together["q9", 5] >= 6
    assert together["q7", 4] + together["q7", 7] >= 3
    assert together["q3", 3] >= 3


def test_group_is_split_anew_in_each_epoch() -> None:
    together = {frozenset(i for i in batch if GROUPS[i] == "q8") for batch in grouped_batches(steps=28)} - {
        frozenset()
    }
    assert len(together) > 4


def test_all_examples_of_groups_come_up() -> None:
    assert {i for batch in grouped_batches() for i in batch} == set(range(len(GROUPS)))


def test_batches_of_groups_have_similar_lengths() -> None:
    groups = [f"q{index // 4}" for index in range(320)]
    lengths = [index // 4 * 37 % 80 for index in range(320)]
    order = plan_order(lengths, 8, 40, seed=1, groups=groups, group_size=4)
    batches = [[lengths[i] for i in order[start : start + 8]] for start in range(0, 320, 8)]
    # Two queries a batch, of 40 that were sorted: neighbours differ by 2 on average, and at random by 27.
    assert sum(max(batch) - min(batch) for batch in batches) / len(batches) < 5


def test_group_that_fills_no_batch_alone_is_repeated() -> None:
    order = plan_order([1, 1, 1], 8, 2, seed=1, groups=["a", "a", None], group_size=2)
    assert len(order) == 16
    assert set(order) == {0, 1, 2}
