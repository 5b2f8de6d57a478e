import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_export.data.gold_traces import gold_steps
from model_export.data.pairs import Finding, Pair
from service.contract.findings import is_true
from service.contract.prompt import Note
from service.contract.text import canonicalize
from service.contract.trace import ANSWER_CUE, parse_trace

STEPS = ("intent", "topic", "constraints", "quality")

# Pieces of which texts are made that a trace could mistake for its own.
hostile = st.sampled_from(
    [" => 3", ": ", "Grade: 2", "topic: x => 1", "\n", "\r", "\u2028", "\u0085", "東京", "한국", "🎧", "3"]
)
texts = st.lists(hostile | st.text(max_size=8), max_size=8).map("".join).map(canonicalize)


@st.composite
def pairs(draw: st.DrawFn) -> Pair:
    findings = st.builds(Finding, texts.filter(bool), st.integers(0, 3))
    found = draw(st.dictionaries(st.sampled_from(STEPS), findings, max_size=3))
    return pair(draw(texts.filter(bool)), draw(texts), draw(texts), draw(st.integers(0, 3)), **found)


def pair(query: str, title: str, body: str, label: int = 2, **findings: Finding) -> Pair:
    return Pair("1", query, Note(title, body), label, "made", "made-1", findings)


@given(
    pairs(), st.lists(st.text(string.ascii_letters + "-", min_size=1, max_size=9), unique=True, max_size=6)
)
def test_written_traces_parse_for_any_text(made: Pair, others: list[str]) -> None:
    for steps in (STEPS, tuple(others)):
        trace = parse_trace(f"{gold_steps(made, steps)}{ANSWER_CUE}{made.label}", steps, top_grade=3)
        assert trace is not None
        assert [step.criterion for step in trace.steps] == list(steps)
        assert all(0 <= step.grade <= 3 for step in trace.steps)
        assert all(step.grade == made.label for step in trace.steps[-1:])
        for step in trace.steps[:-1]:
            if step.criterion in made.findings:
                assert Finding(step.finding, step.grade) == made.findings[step.criterion]
            else:
                assert is_true(step.finding, made.query, made.note)


@pytest.mark.parametrize(
    ("made", "lines"),
    [
        (
            pair("quiet cafes in Lisbon with wifi", "Lisbon by night", "Bars, and one cafes street. " * 3),
            [
                "intent: wants quiet cafes lisbon wifi => 3",
                "topic: title has lisbon => 1",
                "constraints: missing quiet wifi => 1",
                "quality: little to read => 2",
            ],
        ),
        (
            pair("tea", "", ""),
            [
                "intent: wants tea => 3",
                "topic: title has nothing => 0",
                "constraints: missing tea => 0",
                "quality: nothing to read => 2",
            ],
        ),
    ],
)
def test_findings_compare_words(made: Pair, lines: list[str]) -> None:
    assert gold_steps(made, STEPS).splitlines() == lines
    assert gold_steps(made, ()) == ""


def test_findings_of_the_data_come_first_and_the_last_step_concludes() -> None:
    made = pair("tea", "Tea", "Green.", 1, topic=Finding("both are about tea", 3), quality=Finding("thin", 0))
    lines = gold_steps(made, STEPS).splitlines()
    assert lines[1] == "topic: both are about tea => 3"
    assert lines[3] == "quality: thin => 1"


@pytest.mark.parametrize(
    ("query", "wants"),
    [
        ("the of and", "the of and"),
        ("tea tea TEA", "tea"),
        ("東京 カフェ", "東 京 カ フ"),
        ("?!", "nothing"),
        ("a b c d e f", "b c d e"),
    ],
)
def test_first_step_names_the_query_s_words(query: str, wants: str) -> None:
    assert (
        gold_steps(pair(query, "", ""), ("intent", "last")).splitlines()[0] == f"intent: wants {wants} => 3"
    )
