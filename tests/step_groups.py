"""Rollouts of a byte-level tokenizer, and groups of them whose credit by step is written by hand."""

from collections.abc import Sequence

from model_export.data.pairs import Finding, Pair
from model_export.data.rollout_reader import Rollout, RolloutReader
from service.contract.prompt import Note
from service.contract.trace import write_step
from tests.byte_tokens import TOKENIZER, encode

CRITERIA = ("topic", "constraints")
[END] = TOKENIZER.encode_template("<|im_end|>")
READER = RolloutReader(TOKENIZER, END)
# Judged by an annotator, who gave grade 2 and found what is written in a perfect trace.
FINDINGS = {"topic": Finding("both are about tea", 3), "constraints": Finding("one is green", 2)}
ANNOTATED = Pair("a", "green tea", Note("tea", "black"), 2, "made", "c", FINDINGS)


def trace_text(
    topic: int = 3,
    constraints: int = 2,
    answer: int = 2,
    *,
    about: str = "both are about tea",
    one: str = "one is green",
) -> str:
    return f"{write_step('topic', about, topic)}{write_step('constraints', one, constraints)}Grade: {answer}"


WRONG = trace_text(0, 0, 0)
# A rollout of a group whose other rollout is WRONG, its advantage, and the credit in finding and grade of each step and in the rest.
HAND_WORKED: list[tuple[str, float, list[set[float]]]] = [
    # The answer is right by luck: the wrong steps before it earn nothing.
    (trace_text(1, 1, 2), 1.0, [{0.0}, {0.0}, {1.0}]),
    (trace_text(3, 1, 2), 1.0, [{1.0}, {0.0}, {1.0}]),
    (trace_text(3, 2, 2), 1.0, [{1.0}, {1.0}, {1.0}]),
    # The answer is wrong in spite of right steps: they are spared.
    (trace_text(3, 2, 0), -1.0, [{0.0}, {0.0}, {-1.0}]),
    (trace_text(3, 0, 0), -1.0, [{0.0}, {-1.0}, {-1.0}]),
    (trace_text(0, 0, 0), -1.0, [{-1.0}, {-1.0}, {-1.0}]),
]


def tokens(text: str) -> list[int]:
    """Return a complete rollout."""
    return [*encode(text), END]


def read(text: str, criteria: Sequence[str] = CRITERIA) -> Rollout:
    return READER.read(tokens(text), criteria)


def by_place(text: str, values: Sequence[float]) -> list[set[float]]:
    """Return the values of the tokens in finding and grade of each step, and those of the rest."""
    rollout = read(text)
    assert rollout.trace is not None
    found = [set[float](), set[float](), set[float]()]
    for (start, end), value in zip(rollout.spans, values, strict=True):
        places = (
            index
            for index, step in enumerate(rollout.trace.steps)
            for first, last in (step.finding_span, step.grade_span)
            if start < last and max(end, start + 1) > first
        )
        found[next(places, 2)].add(value + 0.0)  # -0.0 is 0.0
    return found
