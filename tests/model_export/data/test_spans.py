import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_export.data.spans import spans_of, without
from service.contract.citations import cite, locate, read_citations
from service.contract.prompt import Note
from service.contract.text import canonicalize


def texts_of(text: str, most_words: int = 4) -> list[str]:
    return [text[slice(*span)] for span in spans_of(text, most_words)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Bars, and one cafe.", ["Bars", "and one cafe"]),
        ("one two three four five six", ["one two three four", "five six"]),
        ("a war (April 1917) was on", ["a war", "April 1917", "was on"]),
        ('a 24" screen for work', ["a", "screen for work"]),
        ("K-Cups! Dark; roast", ["K-Cups", "Dark", "roast"]),
        ("-- ... !", []),
        ("", []),
        ("\u6771\u4eac\u306e\u5bff\u53f8\u5c4b", ["\u6771\u4eac\u306e\u5bff", "\u53f8\u5c4b"]),
        ("$5.99 only", ["5.99 only"]),
        ("安静，有WiFi的咖啡馆。", ["安静", "有WiFi的咖", "啡馆"]),
        ("里斯本（葡萄牙）、《夜车》", ["里斯本", "葡萄牙", "夜车"]),
    ],
)
def test_clauses_are_cut_into_spans(text: str, expected: list[str]) -> None:
    assert texts_of(text) == expected


@given(st.text(max_size=60).map(canonicalize), st.integers(1, 6))
def test_every_span_can_be_cited_and_removed(text: str, most_words: int) -> None:
    spans = spans_of(text, most_words)
    assert spans == sorted(spans)
    for span in spans:
        part = text[slice(*span)]
        assert 1 <= len(spans_of(part, 1)) <= most_words
        [citation] = read_citations(cite("body", part), "", Note("", text))
        assert citation.found == (locate(part, text) is not None)
        rest = without(text, span)
        assert canonicalize(rest) == rest
        assert rest != text


def test_removing_a_span_leaves_single_blanks() -> None:
    assert without("one two three", (4, 7)) == "one three"
    assert without("one", (0, 3)) == ""


def test_removing_a_span_of_chinese_leaves_no_blank() -> None:
    assert without("里斯本的安静咖啡馆", (4, 6)) == "里斯本的咖啡馆"
    assert without("安静的WiFi，咖啡", (3, 7)) == "安静的，咖啡"
