import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract.citations import Citation, are_true, cite, cite_missing, read_citations
from service.contract.prompt import Note
from service.contract.text import canonicalize

NOTE = Note("Lisbon by night", "Bars, and one of the cafés with WiFi (open late).")
QUERY = "quiet cafés in Lisbon"


def found(finding: str, query: str = QUERY, note: Note = NOTE) -> list[bool]:
    return [citation.found for citation in read_citations(finding, query, note)]


@pytest.mark.parametrize(
    ("finding", "expected"),
    [
        ('query "quiet cafés"', True),
        ('query "QUIET"', True),
        ('query "wifi"', False),
        ('title "lisbon by night"', True),
        ('title "by"', True),
        ('title "nigh"', False),  # a part of a word
        ('title "cafés"', False),
        ('body "WiFi (open late)"', True),
        ('body "WiFi ("', True),  # a sign may stand before a word that is not cited
        ('body ", and one of"', True),
        ('body "bars and one"', False),  # not as it is written
        ('body "bars, and one"', True),
        ('missing "quiet"', True),
        ('missing "cafés"', False),  # the body has it
        ('missing "lisbon"', False),  # the title has it
        ('missing "quiet parking"', False),  # the query does not ask for parking
        ('missing "in quiet"', True),
        ('body ""', False),
        ('missing ""', False),
        ('missing "!"', False),
    ],
)
def test_cited_text_must_be_where_the_citation_says(finding: str, expected: bool) -> None:
    assert found(finding) == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('body "東京"', True),
        ('body "京都"', True),
        ('body "都東"', False),
        ('missing "茶"', True),
        ('missing "東"', False),
    ],
)
def test_scripts_without_blanks_are_cited_by_characters(text: str, expected: bool) -> None:
    assert found(text, "茶 東京", Note("", "東京都")) == [expected]


@pytest.mark.parametrize(
    ("finding", "expected"),
    [
        ('query "咖啡馆"，title "安静的咖啡馆"', [True, True]),
        ('标题写title "安静"', [True]),
        ('body "三家都有WiFi"', [True]),
        ('body "WiFi"', [True]),  # between characters, without blanks
        ('body "Wi"', [False]),  # a part of a word
        ('missing "停车"', [True]),
        ('missing "停 车"', [True]),
        ('missing "咖啡"', [False]),
        ('missing "车站"', [False]),  # the query does not ask for a station
    ],
)
def test_citations_of_chinese_are_checked_without_blanks(finding: str, expected: list[bool]) -> None:
    note = Note("安静的咖啡馆", "里斯本有三家，三家都有WiFi，开到很晚。")
    assert found(finding, "里斯本可以停车的咖啡馆", note) == expected


def test_citations_are_found_in_any_text_and_in_their_order() -> None:
    finding = 'asks for query "cafés" and body "one of the cafés" has it, but missing "quiet"; a "quote" and subtitle "x" are no citations'
    first, second, third = read_citations(finding, QUERY, NOTE)
    assert first == Citation("query", "cafés", True, False, (16, 21))
    assert (second.field, second.text, second.found) == ("body", "one of the cafés", True)
    assert (third.field, third.text, third.missing) == ("query", "quiet", True)
    assert [finding[slice(*each.span)] for each in (first, second, third)] == [
        first.text,
        second.text,
        third.text,
    ]


@pytest.mark.parametrize(
    ("finding", "expected"),
    [
        ("nothing", None),
        ("both are about cafés", None),
        ('query "quiet", body "bars"', True),
        ('query "quiet", body "quiet"', False),
    ],
)
def test_trace_is_true_if_all_its_citations_are(finding: str, expected: bool | None) -> None:
    assert are_true(found(finding)) is expected


@given(st.text(max_size=40).map(canonicalize).filter(lambda text: text and '"' not in text))
def test_any_whole_text_can_be_cited(text: str) -> None:
    assert found(cite("body", text), "", Note("", text)) == [True]
    assert found(cite("title", text), "", Note(text, "")) == [True]


def test_written_citation_of_missing_words_is_read() -> None:
    assert found(cite_missing("quiet")) == [True]
