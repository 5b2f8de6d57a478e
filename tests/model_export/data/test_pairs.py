import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_export.data.pairs import (
    UNJUDGED,
    DataError,
    Finding,
    Pair,
    Source,
    check_split,
    read_pairs,
    write_pairs,
)
from service.contract.prompt import Note
from service.contract.text import canonicalize

SOURCE = Source("shop", "general-1", (0, 1, 2, 3))


def row(**changes: Any) -> str:
    plain = {"id": "a", "query": "wool scarf", "note": {"title": None, "body": "a scarf of wool"}, "label": 2}
    return json.dumps(plain | changes)


def write(folder: Path, *lines: str) -> Path:
    path = folder / "data.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def complaint(folder: Path, *lines: str, source: Source = SOURCE) -> str:
    """Return the message of `read_pairs` for such a file, without its path."""
    path = write(folder, *lines)
    with pytest.raises(DataError) as caught:
        read_pairs(path, source)
    return str(caught.value).removeprefix(f"{path}: ")


def pair(id_: str, query: str) -> Pair:
    return Pair(id_, query, Note("", "text"), 0, "shop", "general-1")


def test_a_full_row_becomes_a_pair(tmp_path: Path) -> None:
    extra = {
        "source": "elsewhere",
        "label_variance": 0.25,
        "findings": {"topic": {"text": "both\nwool", "grade": 2}},
    }
    path = write(tmp_path, row(query=" wool\tscarf ", note={"title": "Cafe\u0301", "body": ""}, **extra))
    assert read_pairs(path, SOURCE) == [
        Pair(
            "a",
            "wool scarf",
            Note("Café", ""),
            2,
            "shop",
            "general-1",
            {"topic": Finding("both wool", 2)},
        )
    ]


def test_labels_are_mapped_to_the_recipe_scale(tmp_path: Path) -> None:
    path = write(tmp_path, *(row(id=str(i), query=f"q{i}", label=i) for i in range(3)))
    assert [pair.label for pair in read_pairs(path, Source("s", "c", (0, 1, 3)))] == [0, 1, 3]


def test_blank_lines_and_a_byte_order_mark_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(f"\n \r\n{row()}\r\n\n".encode("utf-8-sig"))
    assert [pair.id for pair in read_pairs(path, SOURCE)] == ["a"]


def test_line_separators_in_a_text_do_not_end_a_line(tmp_path: Path) -> None:
    raw = row(query="wool|scarf").replace("|", "\u2028")
    assert [pair.query for pair in read_pairs(write(tmp_path, raw), SOURCE)] == ["wool scarf"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"id": ', "not JSON (EOF while parsing a value at column 7)"),
        (row(query="|").replace("|", "\\ud800"), "not JSON ("),
        ("[]", "row: Input should be an object"),
        (row(label=4), "label: 4 is out of range 0..3"),
        (row(label=-1), "label: -1 is out of range 0..3"),
        (row(label=True), "label: Input should be a valid integer"),
        (row(label=1.0), "label: Input should be a valid integer"),
        (row(label="1"), "label: Input should be a valid integer"),
        (row(label=None), "label: Input should be a valid integer"),
        (row(id=""), "id: is empty"),
        (row(id=3), "id: Input should be a valid string"),
        (row(id="b\nc"), "id: has surrounding blanks or a line break"),
        (row(id=" b"), "id: has surrounding blanks or a line break"),
        (row(query=" \x00\u2028"), "query: is empty"),
        (row(note={"title": " ", "body": "\t"}), "note: title and body are empty"),
        (row(note="scarf"), "note: Input should be an object"),
        (row(note={"body": "x", "text": "y"}), "note.text: Extra inputs are not permitted"),
        (row(**{"la\nbel": 1}), "la bel: Extra inputs are not permitted"),
        (row(label_variance=-0.5), "label_variance: Input should be greater than or equal to 0"),
        (row(label_variance=float("nan")), "label_variance: Input should be a finite number"),
        (row(label_variance=float("inf")), "label_variance: Input should be a finite number"),
        (row(findings={"topic": {"text": " ", "grade": 1}}), "findings.topic.text: is empty"),
        (
            row(findings={"topic": {"text": "both", "grade": 4}}),
            "findings.topic.grade: 4 is out of range 0..3",
        ),
        (
            row(findings={"to\npic": {"text": "both", "grade": 1}}),
            "findings.to pic.[key]: String should match pattern",
        ),
        (
            row(findings={"topic": {"text": 3, "grade": 1}}),
            "findings.topic.text: Input should be a valid string",
        ),
    ],
)
def test_bad_row_is_named_by_line(line: str, expected: str, tmp_path: Path) -> None:
    found = complaint(tmp_path, row(id="first", query="other"), "", line)
    assert found.startswith(f"line 3: {expected}")
    assert "line 1:" not in found
    assert "\n" not in found


@pytest.mark.parametrize("key", ["id", "query", "note", "label"])
def test_missing_key_is_named(key: str, tmp_path: Path) -> None:
    line = json.dumps({name: value for name, value in json.loads(row()).items() if name != key})
    assert complaint(tmp_path, line) == f"line 1: {key}: Field required"


def test_label_is_checked_against_the_scale_of_the_file(tmp_path: Path) -> None:
    found = complaint(tmp_path, row(label=3), source=Source("s", "c", (0, 1, 3)))
    assert found == "line 1: label: 3 is out of range 0..2"


def test_unjudged_pairs_need_no_label(tmp_path: Path) -> None:
    plain = json.loads(row())
    del plain["label"]
    path = write(tmp_path, json.dumps(plain), row(id="b", query="hat", label=3))
    assert [pair.label for pair in read_pairs(path, SOURCE, judged=False)] == [UNJUDGED, 3]


def test_label_of_an_unjudged_pair_is_checked(tmp_path: Path) -> None:
    path = write(
        tmp_path, row(label=4), row(id="b", query="hat", label="1"), row(id="c", query="", label=None)
    )
    with pytest.raises(DataError) as caught:
        read_pairs(path, SOURCE, judged=False)
    assert "line 1: label: 4 is out of range 0..3; line 2: label: Input should be a valid integer" in str(
        caught.value
    )
    assert str(caught.value).endswith("line 3: query: is empty")


def test_all_errors_are_named_at_once(tmp_path: Path) -> None:
    found = complaint(tmp_path, row(query="", note={"body": ""}), row(id="b", label=9), "{")
    assert found == (
        "line 1: query: is empty; note: title and body are empty; "
        "line 2: label: 9 is out of range 0..3; "
        "line 3: not JSON (EOF while parsing an object at column 1)"
    )


def test_repeated_id_names_both_lines(tmp_path: Path) -> None:
    assert complaint(tmp_path, row(), row(query="other")) == "line 2: id: the same as in line 1"


@pytest.mark.parametrize(("label", "suffix"), [(2, ""), (1, ", with another label")])
def test_repeated_text_names_both_lines(label: int, suffix: str, tmp_path: Path) -> None:
    again = row(id="b", query="wool   scarf", label=label)
    assert complaint(tmp_path, row(), "", again) == f"line 3: the same pair as line 1{suffix}"


def test_labels_mapped_to_one_grade_still_differ(tmp_path: Path) -> None:
    found = complaint(tmp_path, row(label=0), row(id="b", label=1), source=Source("s", "c", (0, 0, 1)))
    assert found == "line 2: the same pair as line 1, with another label"


def test_twenty_lines_are_named_and_the_rest_counted(tmp_path: Path) -> None:
    found = complaint(tmp_path, *["{"] * 1_025)
    assert "line 20: " in found
    assert "line 21: " not in found
    assert found.endswith("; and 1,005 more")


def test_messages_hold_no_text_of_query_or_note(tmp_path: Path) -> None:
    secret = {
        "query": "zebra",
        "note": {"title": "zebra", "body": "zebra", "zone": "zebra"},
        "label": "zebra",
    }
    lines = [row(**secret), row(**secret)[:-4], row(query="zebra"), row(query="zebra", id="b")]
    assert "zebra" not in complaint(tmp_path, *lines)


@pytest.mark.parametrize("content", [b"", b"\n  \n"])
def test_file_without_a_pair_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match="has no pairs"):
        read_pairs(path, SOURCE)


def test_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="can't be read"):
        read_pairs(tmp_path / "absent.jsonl", SOURCE)


def test_wrong_encoding_is_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(f"{row()}\n".encode() + "café".encode("latin-1"))
    with pytest.raises(DataError, match="line 2: not UTF-8"):
        read_pairs(path, SOURCE)


texts = st.text(max_size=20).map(canonicalize)
full_texts = texts.filter(bool)
notes = st.builds(Note, texts, full_texts) | st.builds(Note, full_texts, texts)


@st.composite
def pairs(draw: st.DrawFn) -> list[Pair]:
    keys = draw(st.lists(st.tuples(full_texts, notes), min_size=1, max_size=5, unique=True))
    ids = draw(st.lists(full_texts, min_size=len(keys), max_size=len(keys), unique=True))
    findings = st.dictionaries(
        st.sampled_from(["topic", "attribute"]), st.builds(Finding, full_texts, st.integers(0, 3))
    )
    return [
        Pair(id_, *key, draw(st.integers(0, 3)), "shop", "general-1", draw(findings))
        for id_, key in zip(ids, keys, strict=True)
    ]


@given(pairs())
def test_written_rows_are_read_back(tmp_path_factory: pytest.TempPathFactory, written: list[Pair]) -> None:
    path = tmp_path_factory.getbasetemp() / "pairs.jsonl"
    write_pairs(path, written)
    assert read_pairs(path, SOURCE) == written


def test_written_rows_name_their_source(tmp_path: Path) -> None:
    write_pairs(tmp_path / "out.jsonl", [pair("a", "scarf")])
    assert json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8")) == {
        "id": "a",
        "query": "scarf",
        "note": {"title": None, "body": "text"},
        "label": 0,
        "source": "shop",
    }


@pytest.mark.parametrize(
    ("dev", "message"),
    [
        ([pair("d1", "lamp"), pair("d2", "WOOL  Scarf")], "query is in train as well: d2$"),
        ([pair("d1", "STRASSE")], "query is in train as well: d1$"),
        ([pair("a", "lamp")], "id is in train as well: a$"),
        ([pair(f"d{i}", "wool scarf") for i in range(23)], "d0, d1, .*, d19, and 3 more$"),
    ],
)
def test_leakage_is_named_by_pair(dev: Sequence[Pair], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_split([pair("a", "Wool scarf"), pair("b", "straße")], dev)


def test_clean_split_passes() -> None:
    train, dev = [pair("a", "wool scarf")], [pair("b", "scarf"), pair("A", "wool lamp")]
    check_split(train, dev)
    with pytest.raises(DataError):
        check_split(train, [*dev, *train])
