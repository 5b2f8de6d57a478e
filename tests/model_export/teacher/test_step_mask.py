"""The step mask on rollouts built token by token, so that each token's step is known."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_export.data.rollout_reader import Rollout, RolloutReader
from model_export.teacher.step_mask import step_mask
from service.contract.text import canonicalize
from service.contract.trace import Step, Trace, write_step
from tests.byte_tokens import TOKENIZER, any_tokens, encode

CRITERIA = ("topic", "constraints")
[END] = TOKENIZER.encode_template("<|im_end|>")
READER = RolloutReader(TOKENIZER, END)


@dataclass
class Built:
    """A complete rollout, and the intermediate grade of each token's step; None in the answer."""

    token_ids: list[int] = field(default_factory=list)
    grades: list[int | None] = field(default_factory=list)

    def add(self, token_ids: Sequence[int], grade: int | None = None) -> None:
        self.token_ids += token_ids
        self.grades += [grade] * len(token_ids)


def slow_mask(grades: Sequence[int | None], gold: int, advantage: float) -> list[float]:
    """Apply the rule of the module's docstring token by token."""
    return [
        float(grade is None or (advantage > 0 and grade == gold) or (advantage < 0 and grade != gold))
        for grade in grades
    ]


@st.composite
def rollouts(draw: st.DrawFn) -> Built:
    built = Built()
    for criterion in CRITERIA:
        finding, grade = draw(st.text(max_size=12).map(canonicalize)), draw(st.integers(0, 3))
        built.add(draw(any_tokens(write_step(criterion, finding, grade))), grade)
    built.add(draw(any_tokens(f"Grade: {draw(st.integers(0, 3))}")))
    built.add([END])
    return built


def mask_by_line(text: str, gold: int, advantage: float) -> list[set[float]]:
    """Return the mask's values in each line, those of the answer and the end token last."""
    built = Built()
    for number, line in enumerate(text.splitlines(keepends=True)):
        built.add(encode(line), number)
    built.add([END], len(CRITERIA))
    mask = step_mask(READER.read(built.token_ids, CRITERIA), gold, advantage)
    found: dict[int | None, set[float]] = {}
    for value, number_of_line in zip(mask, built.grades, strict=True):
        found.setdefault(number_of_line, set()).add(value)
    return list(found.values())


def trace_text(topic: int, constraints: int, answer: int) -> str:
    first = write_step("topic", "both are about tea", topic)
    return f"{first}{write_step('constraints', 'one is green', constraints)}Grade: {answer}"


@settings(max_examples=50)
@given(rollouts(), st.integers(0, 3), st.sampled_from([-1.5, -1e-7, 0.0, 1e-7, 1.5]))
def test_mask_equals_a_plain_loop(built: Built, gold: int, advantage: float) -> None:
    rollout = READER.read(built.token_ids, CRITERIA)
    assert rollout.trace is not None
    assert step_mask(rollout, gold, advantage) == slow_mask(built.grades, gold, advantage)


@given(st.lists(st.integers(0, 511), max_size=30), st.integers(0, 3), st.floats(-2, 2))
def test_mask_has_one_value_per_token(token_ids: list[int], gold: int, advantage: float) -> None:
    mask = step_mask(READER.read(token_ids, CRITERIA), gold, advantage)
    assert len(mask) == len(token_ids)
    assert set(mask) <= {0.0, 1.0}


@settings(max_examples=50)
@given(rollouts(), st.integers(0, 3), st.floats(-2, 2), st.data())
def test_truncated_rollout_is_not_masked(
    built: Built, gold: int, advantage: float, data: st.DataObject
) -> None:
    length = data.draw(st.integers(0, len(built.token_ids) - 1))
    cut = READER.read(built.token_ids[:length], CRITERIA)
    assert cut.trace is None
    assert step_mask(cut, gold, advantage) == [1.0] * length


@pytest.mark.parametrize(
    ("text", "advantage", "expected"),
    [
        # The answer is right by luck: the wrong steps before it earn nothing.
        (trace_text(0, 1, 2), 1.0, [{0.0}, {0.0}, {1.0}]),
        (trace_text(2, 1, 2), 1.0, [{1.0}, {0.0}, {1.0}]),
        (trace_text(2, 2, 2), 1.0, [{1.0}, {1.0}, {1.0}]),
        # The answer is wrong in spite of right steps: they are spared.
        (trace_text(2, 2, 0), -1.0, [{0.0}, {0.0}, {1.0}]),
        (trace_text(2, 0, 0), -1.0, [{0.0}, {1.0}, {1.0}]),
        (trace_text(0, 0, 0), -1.0, [{1.0}, {1.0}, {1.0}]),
        # Nothing to learn, whatever the mask is.
        (trace_text(2, 0, 2), 0.0, [{0.0}, {0.0}, {1.0}]),
    ],
)
def test_masks_match_those_written_by_hand(text: str, advantage: float, expected: list[set[float]]) -> None:
    assert mask_by_line(text, gold=2, advantage=advantage) == expected


def test_token_across_a_border_belongs_to_the_step_it_starts_in() -> None:
    trace = Trace((Step("topic", "", 3, (0, 10)), Step("constraints", "", 0, (10, 20))), 3, (20, 28))
    rollout = Rollout(starts=(0, 9, 12, 19, 21), trace=trace)
    assert step_mask(rollout, 3, 1.0) == [1.0, 1.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("text", "criteria", "parses"), [("Grade: 1", (), True), (trace_text(2, 2, 2), ("topic",), False)]
)
def test_without_steps_or_with_others_it_is_plain_grpo(
    text: str, criteria: tuple[str, ...], parses: bool
) -> None:
    rollout = READER.read([*encode(text), END], criteria)
    assert (rollout.trace is not None) == parses
    assert set(step_mask(rollout, 2, -1.0)) == set(step_mask(rollout, 2, 1.0)) == {1.0}


@pytest.mark.parametrize("place", [0, 3, -3])
def test_control_token_inside_makes_a_trace_invalid(place: int) -> None:
    token_ids = [*encode(trace_text(2, 2, 2)), END]
    [start] = TOKENIZER.encode_template("<|im_start|>")
    token_ids.insert(place, start)
    assert READER.read(token_ids, CRITERIA).trace is None


def test_empty_rollout_has_an_empty_mask() -> None:
    assert step_mask(READER.read([], CRITERIA), 0, 1.0) == []
