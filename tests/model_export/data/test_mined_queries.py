import pytest

from model_export.data.mined_queries import SourceQueries, queries_of
from model_export.data.pairs import Pair, query_hash
from service.contract.prompt import Note


def pair(query: str, title: str, body: str = "") -> Pair:
    return Pair(f"{query} {title} {body}", query, Note(title, body), 1, "shop", "product-2")


def queries(*pairs: Pair, measured: tuple[str, ...] = (), most_bytes: int = 40) -> SourceQueries:
    return queries_of(pairs, {query_hash(query) for query in measured}, most_bytes)


def test_training_query_knows_the_notes_it_is_judged_with_in_any_case() -> None:
    found = queries(
        pair("lamp", "Red lamp", "Bright."),
        pair("tea", "Green tea", "Mild."),
        pair("LAMP", "Oil lamp", "Old."),
    )
    assert [(query.text, query.known, query.own) for query in found.judged] == [
        ("lamp", frozenset({0, 2}), None),
        ("tea", frozenset({1}), None),
    ]


def test_notes_with_the_same_text_are_one() -> None:
    found = queries(pair("lamp", "Red lamp", "Bright."), pair("light", "", "Red lamp Bright."))
    assert list(found.notes) == ["Red lamp Bright."]
    assert [query.known for query in found.judged] == [{0}, {0}]


def test_titles_know_their_own_note() -> None:
    found = queries(pair("lamp", "Red lamp", "Bright."), pair("lamp", "Oil lamp", "Old."))
    assert [(query.text, query.known, query.own) for query in found.titles] == [
        ("Red lamp", frozenset({0}), 0),
        ("Oil lamp", frozenset({1}), 1),
    ]
    assert not found.refused


@pytest.mark.parametrize(
    ("body", "query"),
    [
        ("Boil the water. Then wait.", "Boil the water."),
        ("Why wait? Because.", "Why wait?"),
        ("感冒了怎么办？多喝水。", "感冒了怎么办？"),
        ("version 2.5 of it", "version 2.5 of it"),
    ],
)
def test_note_without_a_title_gives_its_first_sentence(body: str, query: str) -> None:
    assert [title.text for title in queries(pair("tea", "", body)).titles] == [query]


@pytest.mark.parametrize(
    ("title", "reason"),
    [
        ("Quiet CAFES", "title is a dev or test query"),
        ("Tea For Two", "title is a training query"),
        ("red lamp", "title is repeated"),
        ("Lamp!", "title is too short"),
        ("感冒", "title is too short"),
        ("a lamp that is described at great length", "title is too long"),
        ("一盏带有很长描述的红色台灯", "title is too long"),
    ],
)
def test_title_is_refused_with_its_reason(title: str, reason: str) -> None:
    made = (pair("tea for two", "Red lamp", "Bright."), pair("lamp", title, "Other."))
    found = queries(*made, measured=("quiet cafes",), most_bytes=38)
    assert [query.text for query in found.titles] == ["Red lamp"]
    assert found.refused == {reason: 1}


def test_training_query_that_another_source_measures_is_refused() -> None:
    found = queries(pair("Tea", "Green tea"), pair("lamp", "Red lamp"), measured=("tea",))
    assert [query.text for query in found.judged] == ["lamp"]
    assert found.refused == {"training query is in dev or test": 1}
