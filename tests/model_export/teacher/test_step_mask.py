"""The step mask on rollouts of a byte-level tokenizer, compared with a mask that is written out by character."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_export.data.gold_traces import gold_steps
from model_export.data.pairs import Pair
from model_export.data.rollout_reader import Rollout
from model_export.data.synthetic import TaskName, generate, tasks
from model_export.teacher.step_mask import StepRule, mask_advantages, right_steps
from service.contract.prompt import Note
from service.contract.text import canonicalize
from service.contract.trace import Step, Trace, write_step
from tests.byte_tokens import TOKENIZER, any_tokens, encode
from tests.step_groups import (
    ANNOTATED,
    CRITERIA,
    END,
    HAND_WORKED,
    READER,
    WRONG,
    by_place,
    read,
    trace_text,
)

PLAIN = Pair("b", "green tea", Note("tea", "black"), 2, "made", "c")


def right(text: str, pair: Pair, rule: StepRule = "step") -> tuple[bool, ...]:
    rollout = read(text)
    assert rollout.trace is not None
    return right_steps(rollout.trace, pair, rule)


def mask_by_character(text: str, steps: Sequence[bool], advantage: float) -> list[bool]:
    """Return, for each character, whether a mask of these steps keeps it; written without the parser's spans."""
    kept: list[bool] = []
    for line, is_right in zip(text.splitlines(keepends=True), [*steps, None], strict=True):
        marked = set()
        if is_right is not None:
            start, arrow = line.index(": ") + 2, line.rindex(" => ")
            marked = {*range(start, arrow), arrow + 4}
        counts = advantage > 0 if is_right else advantage < 0
        kept += [counts or place not in marked for place in range(len(line))]
    return kept


@st.composite
def rollouts(draw: st.DrawFn) -> tuple[str, list[int]]:
    text, token_ids = "", []
    for criterion in CRITERIA:
        finding = draw(
            st.text(max_size=12).map(canonicalize).filter(lambda found: len(found.splitlines()) < 2)
        )
        line = write_step(criterion, finding, draw(st.integers(0, 3)))
        text += line
        token_ids += draw(any_tokens(line))
    answer = f"Grade: {draw(st.integers(0, 3))}"
    return text + answer, [*token_ids, *draw(any_tokens(answer)), END]


@settings(max_examples=50)
@given(rollouts(), st.integers(0, 3), st.sampled_from([-1.5, -1e-7, 1e-7, 1.5]))
def test_mask_keeps_the_tokens_that_a_mask_by_character_keeps(
    drawn: tuple[str, list[int]], gold: int, advantage: float
) -> None:
    text, token_ids = drawn
    pair, rollout = Pair("", "", Note("", ""), gold, "", ""), READER.read(token_ids, CRITERIA)
    assert rollout.trace is not None
    steps = right_steps(rollout.trace, pair, "final")
    # A rollout that gets every step wrong, so that no step is right in the whole group.
    wrong = read(trace_text(*[(gold + 1) % 4] * 3))
    found, _ = mask_advantages(pair, [rollout, wrong], [advantage, 0.0], "final")
    characters = [*mask_by_character(text, steps, advantage), True]
    expected = [
        advantage * all(characters[start : max(end, start + 1)] or [True]) for start, end in rollout.spans
    ]
    assert found == expected


@given(st.lists(st.integers(0, 511), max_size=30), st.integers(0, 3), st.floats(-2, 2))
def test_every_token_has_the_advantage_or_none(token_ids: list[int], gold: int, advantage: float) -> None:
    pair = Pair("", "", Note("", ""), gold, "", "")
    [found] = mask_advantages(pair, [READER.read(token_ids, CRITERIA)], [advantage], "step")
    assert len(found) == len(token_ids)
    assert set(found) <= {0.0, advantage}


@settings(max_examples=50)
@given(rollouts(), st.floats(-2, 2), st.data())
def test_truncated_rollout_is_not_masked(
    drawn: tuple[str, list[int]], advantage: float, data: st.DataObject
) -> None:
    length = data.draw(st.integers(0, len(drawn[1]) - 1))
    cut = READER.read(drawn[1][:length], CRITERIA)
    assert cut.trace is None
    assert mask_advantages(PLAIN, [cut], [advantage], "final") == [[advantage] * length]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (trace_text(), (True, True)),
        (trace_text(answer=0), (True, True)),
        (trace_text(topic=2), (False, True)),
        (trace_text(about="both are about coffee"), (False, True)),
        (trace_text(constraints=1, answer=1), (True, False)),
    ],
)
def test_step_with_a_gold_finding_is_right_if_finding_and_grade_equal_it(
    text: str, expected: tuple[bool, ...]
) -> None:
    assert right(text, ANNOTATED) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (trace_text(), (True, True)),
        (trace_text(constraints=3, answer=3), (True, True)),  # not proved wrong: 3 may still be possible
        (trace_text(topic=1, constraints=1), (False, False)),  # below the gold grade
        (trace_text(topic=2, constraints=3), (True, False)),  # above the step before
        (trace_text(about='missing "tea"'), (False, True)),  # the note has it
        (trace_text(about='title "tea"', one='missing "green"'), (True, True)),
    ],
)
def test_step_without_a_gold_finding_is_right_unless_it_is_provably_wrong(
    text: str, expected: tuple[bool, ...]
) -> None:
    assert right(text, PLAIN) == expected


def test_by_the_final_grade_a_step_is_right_if_it_says_gold() -> None:
    assert right(trace_text(3, 2, 0), ANNOTATED, "final") == (False, True)


@pytest.mark.parametrize("task", ["three", "six"])
def test_perfect_traces_of_generated_data_are_right(task: TaskName) -> None:
    steps = {each.criteria.name: each.criteria.steps for each in tasks(task)}
    for pair in generate(1, 20, 1, 12, task).train:
        text = f"{gold_steps(pair, steps[pair.criteria])}Grade: {pair.label}"
        rollout = read(text, steps[pair.criteria])
        assert rollout.trace is not None
        assert all(right_steps(rollout.trace, pair, "step")), text


@pytest.mark.parametrize(("text", "advantage", "expected"), HAND_WORKED)
def test_credit_matches_that_written_by_hand(text: str, advantage: float, expected: list[set[float]]) -> None:
    group = [read(text), read(WRONG)]
    values = mask_advantages(ANNOTATED, group, [advantage, -advantage], "step")[0]
    assert by_place(text, values) == expected


def test_shared_right_step_gets_no_net_push_within_a_group() -> None:
    traces = [trace_text(), trace_text(constraints=1, answer=1), trace_text(constraints=1, answer=1)]
    advantages = [1.4, -0.7, -0.7]
    group = [read(text) for text in traces]
    found = mask_advantages(ANNOTATED, group, advantages, "step")
    shared = traces[0].index("\n")
    for token, (_, end) in enumerate(group[0].spans):
        if end <= shared:
            assert sum(values[token] for values in found) == pytest.approx(0.0)
            assert [values[token] for values in found] == advantages


def test_rollout_that_does_not_parse_leaves_the_group_its_mask() -> None:
    rollouts = [read(trace_text()), read(trace_text(0, 0, 0)), read("no trace")]
    masked = mask_advantages(ANNOTATED, rollouts, [1.0, -0.5, -0.5], "step")
    assert set(masked[2]) == {-0.5}
    assert masked[:2] == mask_advantages(ANNOTATED, rollouts[:2], [1.0, -0.5], "step")


def test_token_across_a_border_is_masked_with_the_step() -> None:
    trace = Trace((Step("topic", "", 3, (7, 9), (13, 14)), Step("c", "", 0, (18, 19), (23, 24))), 3, (25, 33))
    # The second token ends with the first character of the finding; the third one has no width, as a part of a character.
    rollout = Rollout(((0, 6), (6, 8), (8, 8), (8, 12), (12, 14), (14, 18), (18, 24), (24, 33)), trace)
    pair = Pair("", "", Note("", ""), 3, "", "")
    wrong = read(trace_text(0, 0, 0))
    found, _ = mask_advantages(pair, [rollout, wrong], [-1.0, 1.0], "final")
    assert [value + 0.0 for value in found] == [-1, 0, 0, 0, 0, -1, -1, -1]


@pytest.mark.parametrize(
    ("text", "criteria", "parses"), [("Grade: 1", (), True), (trace_text(2, 2, 2), ("topic",), False)]
)
def test_without_steps_or_with_others_it_is_plain_grpo(
    text: str, criteria: tuple[str, ...], parses: bool
) -> None:
    rollout = read(text, criteria)
    assert (rollout.trace is not None) == parses
    for advantage in (-1.0, 1.0):
        [found] = mask_advantages(PLAIN, [rollout], [advantage], "step")
        assert set(found) == {advantage}


@pytest.mark.parametrize("place", [0, 3, -3])
def test_control_token_inside_makes_a_trace_invalid(place: int) -> None:
    token_ids = [*encode(trace_text(2, 2, 2)), END]
    [start] = TOKENIZER.encode_template("<|im_start|>")
    token_ids.insert(place, start)
    assert READER.read(token_ids, CRITERIA).trace is None


def test_empty_rollout_has_no_credit() -> None:
    assert mask_advantages(PLAIN, [READER.read([], CRITERIA)], [1.0], "step") == [[]]
