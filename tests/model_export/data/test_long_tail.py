from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from model_export.data.long_tail import long_tail_ids, read_long_tail
from model_export.data.pairs import DataError, Pair
from service.contract.prompt import Note


def pair(id_: str, query: str, title: str = "", body: str = "") -> Pair:
    return Pair(id_, query, Note(title, body), 0, "shop", "general-1")


def dev_of(*queries: str) -> list[Pair]:
    return [pair(query, query) for query in queries]


def rarest(train: Sequence[Pair], *queries: str) -> frozenset[str]:
    return long_tail_ids(train, dev_of(*queries))


def test_the_third_with_the_rarest_terms_is_taken() -> None:
    train = [pair("1", "lamp", "red lamp", "a lamp"), pair("2", "red coat"), pair("3", "red scarf")]
    # Documents: 3 queries and 2 notes. lamp is in 2, red in 3, coat in 1, canoe in none.
    assert rarest(train, "lamp", "red", "coat") == {"coat"}
    assert rarest(train, "lamp", "red", "coat", "canoe", "red coat", "red lamp") == {"coat", "canoe"}
    assert rarest(train, "lamp", "red", "coat", "red coat", "red lamp") == {"coat"}  # rounded down


def test_all_pairs_of_a_rare_query_are_taken() -> None:
    dev = [*dev_of("lamp", "red"), pair("a", "canoe"), pair("b", "canoe")]
    assert long_tail_ids([pair("1", "red lamp")], dev) == {"a", "b"}


def test_a_repeated_query_or_note_is_one_document() -> None:
    again = [pair(str(i), "coat", "coat") for i in range(9)]
    train = [*again, pair("x", "lamp", "lamp"), pair("y", "red", "", "red lamp"), pair("z", "red mug")]
    assert rarest(train, "coat", "lamp", "red") == {"coat"}


def trained_on(counts: Mapping[str, int]) -> list[Pair]:
    """Pairs whose queries contain each word that many times; their empty notes are one more document."""
    return [pair(f"{word}{i}", f"{word} {i}x") for word, count in counts.items() for i in range(count)]


def test_a_repeated_term_of_a_query_counts_once() -> None:
    # Means of 2.5 and 2.67; with coat twice the first would be 3.
    train = trained_on({"lamp": 1, "coat": 4, "bike": 2, "drum": 3, "tent": 3})
    assert rarest(train, "coat coat lamp", "bike drum tent", "coat") == {"coat coat lamp"}


def test_ties_are_broken_by_text_despite_rounding() -> None:
    # Both means are 5 of 26 documents; summed as shares in floating point, the first is the larger.
    train = trained_on({"ash": 3, "bay": 5, "cod": 7, "elk": 4, "fir": 6})
    assert rarest(train, "ash bay cod", "elk fir", "cod") == {"ash bay cod"}


@pytest.mark.parametrize(
    ("trained", "common", "rare"),
    [
        ("LAMP", "lamp", "zinc"),
        ("ｌａｍｐ２", "lamp2", "lamp3"),
        ("lamp-post", "post", "x post"),
        ("lamp_post", "lamp", "lamp_zinc"),
        ("红色台灯", "色台", "色灯"),
        ("台 lamp", "台", "灯"),
        ("usb台灯3", "usb 台灯", "usb台"),
        ("台灯usb", "台灯 usb", "灯台"),
    ],
)
def test_terms_are_words_and_chinese_bigrams(trained: str, common: str, rare: str) -> None:
    assert rarest([pair("1", trained)], common, rare, common + " " + common) == {rare}


def test_empty_dev_has_no_long_tail() -> None:
    assert rarest([pair("1", "lamp")]) == frozenset()


def test_ids_are_read_one_per_line(tmp_path: Path) -> None:
    path = tmp_path / "dev.ids"
    path.write_text("a b\r\n\n c\n", encoding="utf-8")
    assert read_long_tail(path, dev_of("a b", "c", "d")) == {"a b", "c"}


@pytest.mark.parametrize(
    ("text", "complaint"), [("\n", "holds no id"), ("a\nz\ny\n", r"no dev pair has the id y, z$")]
)
def test_empty_file_and_unknown_ids_are_refused(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "dev.ids"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=complaint):
        read_long_tail(path, dev_of("a", "b"))
