import pytest

from service.contract.findings import is_true
from service.contract.prompt import Note

NOTE = Note("Lisbon by night", "Bars, and one of the cafés with WiFi for a long, long evening.")
QUERY = "quiet cafés in Lisbon"


@pytest.mark.parametrize(
    ("finding", "expected"),
    [
        ("wants quiet cafés lisbon", True),
        ("wants QUIET", True),
        ("wants wifi", False),
        ("wants nothing", False),
        ("title has lisbon", True),
        ("title has night", True),
        ("title has cafés", False),
        ("title has quiet lisbon", False),
        ("title has nothing", False),
        ("missing quiet", True),
        ("missing cafés", False),  # the body has it
        ("missing parking", False),  # the query does not ask for it
        ("missing nothing", False),
        ("little to read", True),
        ("much to read", False),
        ("nothing to read", False),
        ("both are about cafés", None),
        ("missingquiet", None),
        ("", None),
    ],
)
def test_words_that_a_finding_names_must_be_where_it_says(finding: str, expected: bool | None) -> None:
    assert is_true(finding, QUERY, NOTE) is expected


@pytest.mark.parametrize(
    ("finding", "expected"),
    [("title has nothing", True), ("missing nothing", False), ("missing 東", False), ("missing 茶", True)],
)
def test_nothing_is_true_where_there_is_nothing(finding: str, expected: bool) -> None:
    assert is_true(finding, "茶 東京", Note("", "東京")) is expected


def test_nothing_is_missing_where_the_note_has_all_words() -> None:
    assert is_true("missing nothing", "the tea", Note("Tea", ""))
