"""Each arm's credit on rollouts of a byte-level tokenizer, compared with figures worked by hand."""

import pytest

from model_export.data.pairs import Finding, Pair
from model_export.data.rollout_reader import Rollout, RolloutReader
from model_export.experiment.arms import ARMS, CREDITS, dense_credit, prefix_credit
from service.contract.prompt import Note
from service.contract.trace import write_step
from tests.byte_tokens import TOKENIZER, encode

CRITERIA = ("topic", "constraints")
[END] = TOKENIZER.encode_template("<|im_end|>")
READER = RolloutReader(TOKENIZER, END)
PAIR = Pair(
    "a", "", Note("", ""), 2, "made", "c", {"topic": Finding("tea", 3), "constraints": Finding("green", 2)}
)


def read(topic: int, constraints: int, answer: int) -> Rollout:
    steps = write_step("topic", "tea", topic) + write_step("constraints", "green", constraints)
    return READER.read([*encode(f"{steps}Grade: {answer}"), END], CRITERIA)


def by_line(rollout: Rollout, values: list[float]) -> list[float]:
    """Return the credit of the tokens that start in each of the three lines, which must be the same in a line."""
    assert rollout.trace is not None
    first, second = (step.grade_span[1] for step in rollout.trace.steps)
    lines = [set[float](), set[float](), set[float]()]
    for (start, _), value in zip(rollout.spans, values, strict=True):
        lines[(start >= first) + (start >= second)].add(value)
    assert all(len(line) == 1 for line in lines)
    return [line.pop() for line in lines]


def test_dense_credit_is_the_normalised_reward_to_go() -> None:
    rollouts = [read(3, 2, 2), read(3, 0, 0)]  # they earn 1 1 1 and 1 0 0: mean 2/3, spread sqrt(2)/3
    right, wrong = (1 / 3) / (2**0.5 / 3), (-2 / 3) / (2**0.5 / 3)
    found = [by_line(*row) for row in zip(rollouts, dense_credit(PAIR, rollouts, [1.0, -1.0]), strict=True)]
    assert found[0] == pytest.approx([3 * right, 2 * right, right], rel=1e-3)
    assert found[1] == pytest.approx([right + 2 * wrong, 2 * wrong, wrong], rel=1e-3)


def test_dense_credit_of_a_rollout_that_does_not_parse_is_that_of_a_wrong_answer() -> None:
    unread = READER.read(encode("no trace"), CRITERIA)
    found = dense_credit(PAIR, [read(3, 2, 2), unread], [1.0, -1.0])
    assert len(found[1]) == len(unread.spans)
    assert len(set(found[1])) == 1
    assert found[1][0] < 0 < found[0][0]


@pytest.mark.parametrize(
    ("rollout", "advantage", "expected"),
    [
        (read(3, 2, 2), 1.0, [1, 1, 1]),
        (read(1, 2, 2), 1.0, [1, 1, 1]),  # a lucky answer keeps its reward
        (read(3, 2, 0), -1.0, [1, 1, -1]),  # only the answer is wrong
        (read(3, 0, 0), -1.0, [1, -1, -1]),
        (read(0, 2, 0), -1.0, [-1, -1, -1]),  # what follows the first wrong step is punished too
    ],
)
def test_prefix_before_the_first_wrong_step_is_rewarded(
    rollout: Rollout, advantage: float, expected: list[float]
) -> None:
    [values] = prefix_credit(PAIR, [rollout], [advantage])
    assert by_line(rollout, values) == expected


def test_prefix_credit_punishes_a_rollout_that_does_not_parse() -> None:
    unread = READER.read(encode("no trace"), CRITERIA)
    assert set(prefix_credit(PAIR, [unread], [-0.5])[0]) == {-0.5}


def test_arms_are_the_supervised_one_and_those_with_credit() -> None:
    assert ("sft", *CREDITS) == ARMS
    assert [arm for arm, credit in CREDITS.items() if credit is None] == ["grpo"]
