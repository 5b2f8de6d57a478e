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
THREE_LABELS = Source("shop", "general-1", (0, 1, 3))


def row(**changes: Any) -> str:
    plain = {"id": "a", "query": "wool scarf", "note": {"title": None, "body": "a scarf of wool"}, "label": 2}
    return json.dumps({key: value for key, value in {**plain, **changes}.items() if value is not ...})


def read(folder: Path, *lines: str, source: Source = SOURCE, judged: bool = True) -> list[Pair]:
    path = folder / "data.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return read_pairs(path, source, judged=judged)


def complaint(folder: Path, *lines: str, source: Source = SOURCE, judged: bool = True) -> str:
    """Return the message of `read_pairs` for such a file, without its path."""
    with pytest.raises(DataError) as caught:
        read(folder, *lines, source=source, judged=judged)
    return str(caught.value).removeprefix(f"{folder / 'data.jsonl'}: ")


def pair(id_: str, query: str) -> Pair:
    return Pair(id_, query, Note("", "text"), 0, "shop", "general-1")


def test_a_full_row_becomes_a_pair(tmp_path: Path) -> None:
    findings = {"topic": {"text": "both\nwool", "grade": 2}}
    extra = {"source": "elsewhere", "label_variance": 0.25, "findings": findings}
    [found] = read(tmp_path, row(query=" wool\tscarf ", note={"title": "Cafe\u0301", "body": ""}, **extra))
    topic = Finding("both wool", 2)
    assert found == Pair("a", "wool scarf", Note("Café", ""), 2, "shop", "general-1", {"topic": topic})


def test_labels_are_mapped_to_the_recipe_scale(tmp_path: Path) -> None:
    rows = [row(id=str(i), query=f"q{i}", label=i) for i in range(3)]
    assert [pair.label for pair in read(tmp_path, *rows, source=THREE_LABELS)] == [0, 1, 3]


def test_blank_lines_and_a_byte_order_mark_do_not_count(tmp_path: Path) -> None:
    assert [pair.id for pair in read(tmp_path, "\ufeff", " \r", f"{row()}\r", "", "")] == ["a"]


def test_line_separators_in_a_text_do_not_end_a_line(tmp_path: Path) -> None:
    raw = row(query="wool|scarf").replace("|", "\u2028")
    assert [pair.query for pair in read(tmp_path, raw)] == ["wool scarf"]


def finding(**changes: Any) -> dict[str, Any]:
    return {"topic": {"text": "both", "grade": 1, **changes}}


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
        (row(findings=finding(text=" ")), "findings.topic.text: is empty"),
        (row(findings=finding(grade=4)), "findings.topic.grade: 4 is out of range 0..3"),
        (row(findings={"to\npic": finding()["topic"]}), "findings.to pic.[key]: String should match pattern"),
        (row(findings=finding(text=3)), "findings.topic.text: Input should be a valid string"),
        *((row(**{key: ...}), f"{key}: Field required") for key in ("id", "query", "note", "label")),
    ],
)
def test_bad_row_is_named_by_line(line: str, expected: str, tmp_path: Path) -> None:
    found = complaint(tmp_path, row(id="first", query="other"), "", line)
    assert found.startswith(f"line 3: {expected}")
    assert "line 1:" not in found
    assert "\n" not in found


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([row(), row(query="other")], "line 2: id: the same as in line 1"),
        ([row(), "", row(id="b", query="wool   scarf")], "line 3: the same pair as line 1"),
        ([row(), "", row(id="b", label=1)], "line 3: the same pair as line 1, with another label"),
        (
            [row(query="", note={"body": ""}), row(id="b", label=9), "{"],
            "line 1: query: is empty; note: title and body are empty; line 2: label: 9 is out of range 0..3; "
            "line 3: not JSON (EOF while parsing an object at column 1)",
        ),
    ],
)
def test_all_errors_are_named_at_once(tmp_path: Path, lines: list[str], expected: str) -> None:
    assert complaint(tmp_path, *lines) == expected


def test_labels_are_checked_and_compared_on_the_scale_of_the_file(tmp_path: Path) -> None:
    found = complaint(tmp_path, row(label=3), source=THREE_LABELS)
    assert found == "line 1: label: 3 is out of range 0..2"
    # Two labels that map to one grade still differ.
    found = complaint(tmp_path, row(label=0), row(id="b", label=1), source=Source("s", "c", (0, 0, 1)))
    assert found == "line 2: the same pair as line 1, with another label"


def test_unjudged_pairs_need_no_label_and_a_given_one_is_checked(tmp_path: Path) -> None:
    rows = [row(label=...), row(id="b", query="hat", label=3), row(id="c", query="cap", label=None)]
    assert [pair.label for pair in read(tmp_path, *rows, judged=False)] == [UNJUDGED, 3, UNJUDGED]
    assert complaint(tmp_path, row(label=4), row(id="b", query="", label="1"), judged=False) == (
        "line 1: label: 4 is out of range 0..3; line 2: query: is empty; label: Input should be a valid integer"
    )


def test_twenty_lines_are_named_and_the_rest_counted(tmp_path: Path) -> None:
    found = complaint(tmp_path, *["{"] * 1_025)
    assert "line 20: " in found
    assert "line 21: " not in found
    assert found.endswith("; and 1,005 more")


def test_messages_hold_no_text_of_query_or_note(tmp_path: Path) -> None:
    note = {"title": "zebra", "body": "zebra", "zone": "zebra"}
    secret = {"query": "zebra", "note": note, "label": "zebra"}
    lines = [row(**secret), row(**secret)[:-4], row(query="zebra"), row(query="zebra", id="b")]
    assert "zebra" not in complaint(tmp_path, *lines)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "has no pairs"),
        (b"\n  \n", "has no pairs"),
        (f"{row()}\n".encode() + "café".encode("latin-1"), "line 2: not UTF-8"),
        (None, "can't be read"),
    ],
)
def test_file_without_pairs_or_readable_text_is_refused(
    content: bytes | None, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "data.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=expected):
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


def test_unjudged_pair_is_written_without_a_label(tmp_path: Path) -> None:
    pair = Pair("a", "lamp", Note("", "red"), UNJUDGED, "shop", "general-1")
    write_pairs(tmp_path / "pairs.jsonl", [pair])
    assert read_pairs(tmp_path / "pairs.jsonl", SOURCE, judged=False) == [pair]
    with pytest.raises(DataError, match="line 1: label"):
        read_pairs(tmp_path / "pairs.jsonl", SOURCE)


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
