from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from service.contract.citations import read_citations
from service.contract.prompt import Note
from service.contract.text import canonicalize
from service.contract.trace import parse_explanation
from service.contract.trace_grammar import trace_grammar
from tests.checkpoints import tiny_tokenizer_json

TOKENIZER = LLTokenizer(tiny_tokenizer_json())
STEPS = ("asked", "for", "against")
QUERY = "cheap k cups decaf"
NOTE = Note('Starbucks "Caramel" K-Cups, 24 ct.', "Three quiet places to drink.")


def matcher(query: str = QUERY, note: Note = NOTE, steps: tuple[str, ...] = STEPS) -> LLMatcher:
    grammar = LLMatcher.grammar_from_lark(trace_grammar(steps, 2, query, note))
    assert not LLMatcher.validate_grammar(grammar, TOKENIZER)
    return LLMatcher(TOKENIZER, grammar)


def accepts(found: LLMatcher, text: str) -> bool:
    """Return whether the grammar goes on with the whole text."""
    tokens = TOKENIZER.tokenize_str(text)
    return found.validate_tokens(tokens) == len(tokens) and found.consume_tokens(tokens)


def is_whole(text: str, query: str = QUERY, note: Note = NOTE) -> bool:
    found = matcher(query, note)
    return accepts(found, text) and found.is_accepting()


def in_last_step(finding: str, query: str = QUERY, note: Note = NOTE) -> bool:
    return is_whole(f"asked: nothing => 2\nfor: nothing => 2\nagainst: {finding} => 1\n", query, note)


@pytest.mark.parametrize(
    "finding",
    [
        "",
        "nothing",
        "the note is about coffee = nothing like it",
        'query "k cups"',
        'title "Starbucks"',
        'title "K-Cups, 24 ct."',
        'body "Three quiet places to drink."',
        'missing "decaf"',
        'missing "decaf cheap"',
        'title "Starbucks", and missing "cheap"',
    ],
)
def test_true_findings_can_be_written(finding: str) -> None:
    assert in_last_step(finding)


@pytest.mark.parametrize(
    "finding",
    [
        'query "k cup"',  # a part of a word
        'query "cups k"',  # not as it is written
        'title "starbucks"',  # true, but not as it is written
        'title "Three"',
        'title "Starbucks "Caramel" K"',
        'title ""',
        'title " K-Cups"',
        'body "Three quiet "',
        'missing "k"',  # the title has it
        'missing "quiet"',  # the query does not ask for it
        'missing ""',
        'a "quoted" text',
        "nothing => 2",
        "nothing " * 20,  # a finding has a limit
        "two\nlines",
    ],
)
def test_false_and_malformed_findings_can_not(finding: str) -> None:
    assert not in_last_step(finding)


def test_each_step_has_a_grade_up_to_the_top_one() -> None:
    for grades, expected in (("210", True), ("012", True), ("222", True), ("213", False), ("311", False)):
        lines = [f"{step}: nothing => {grade}\n" for step, grade in zip(STEPS, grades, strict=True)]
        assert is_whole("".join(lines)) == expected
        assert not is_whole("".join(lines[:2]))
        assert not is_whole("".join([*lines, lines[-1]]))


@pytest.mark.parametrize("steps", [("for", "asked", "against"), ("asked", "for"), ("asked", "for", "else")])
def test_steps_are_those_of_the_criteria(steps: tuple[str, ...]) -> None:
    assert not is_whole("".join(f"{step}: nothing => 1\n" for step in steps))


def test_without_steps_nothing_is_written() -> None:
    found = matcher(steps=())
    assert found.is_accepting()
    assert not accepts(found, "a")


def test_texts_without_words_have_no_citations() -> None:
    for finding, expected in (("nothing", True), ('title "a"', False), ('missing "a"', False)):
        assert in_last_step(finding, "?", Note("", "...")) == expected
        assert in_last_step(finding, "", Note("", "")) == expected


def test_scripts_without_blanks_are_cited_by_characters() -> None:
    for finding, expected in (('body "京都"', True), ('body "都東"', False), ('missing "茶"', True)):
        assert in_last_step(finding, "茶 東京", Note("", "東京都")) == expected


def test_a_long_note_is_cited_up_to_a_limit() -> None:
    body = " ".join(f"w{number}" for number in range(5000))
    assert in_last_step('body "w900 w901"', note=Note("", body))
    assert not in_last_step('body "w4900 w4901"', note=Note("", body))
    assert not in_last_step(f'body "{body[:400]}"', note=Note("", body))


TEXTS = st.text(st.sampled_from("ab '\"\\/>=é東:.\u200b{}%&🎧"), max_size=20).map(canonicalize)


@given(TEXTS, TEXTS, TEXTS, st.integers())
def test_whatever_it_allows_is_well_formed_and_true(query: str, title: str, body: str, seed: int) -> None:
    """A random walk: pieces that the grammar refuses are left out."""
    note, random = Note(title, body), Random(seed)
    found, text = matcher(query, note), ""
    words = [*query, *title, *body, *f"{query} {title} {body}".split()]
    pieces = ['query "', 'title "', 'body "', 'missing "', '"', " ", "a", *words]
    lines = [f" => {each}\n" for each in range(4)] + [f"{step}: " for step in STEPS]
    for _ in range(400):
        if found.is_accepting():
            break
        piece = random.choice(random.choice((pieces, lines)))
        if accepts(found, piece):
            text += piece
    if not found.is_accepting():
        return  # the walk ended within a step
    steps = parse_explanation(text, STEPS, 2)
    assert steps is not None
    assert all(each.found for step in steps for each in read_citations(step.finding, query, note))
