"""Judged query-note pairs, read from JSON lines and checked line by line.

A bad row is an error that names its line. It is never dropped, because figures would then describe other data than the
user's.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo
from pydantic_core import PydanticCustomError

from service.contract.probes import ProbeNote
from service.contract.prompt import Note
from service.contract.template import Name
from service.contract.text import canonicalize
from service.contract.validation import bad_fields
from service.errors import NotegradeError

UNJUDGED = -1
# The recipe's scale, to which the labels of every source are mapped.
GRADES = (0, 1, 2, 3)
GAINS = tuple(2.0**grade - 1 for grade in GRADES)
_MOST_NAMED = 20


class DataError(NotegradeError):
    """Raised for data that can't be used. The message names lines or pairs and never quotes their text."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A step's finding in a reasoning trace, and the grade so far."""

    text: str
    grade: int


@dataclass(frozen=True, slots=True)
class Pair:
    """A judged pair with canonical texts.

    Attributes:
        id: unique within a recipe's data.
        label: gold grade on the recipe's scale, from 0; UNJUDGED where a teacher has yet to label it.
        source: name of the recipe's source that it came from.
        criteria: name of the criteria it was judged by.
        findings: findings of a reasoning trace, by criterion; empty where the data has none.
    """

    id: str
    query: str
    note: Note
    label: int
    source: str
    criteria: str
    findings: Mapping[str, Finding] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Source:
    """The properties that all rows of a file share.

    `grades[label]` is the grade on the recipe's scale for a label of the file: (0, 1, 3) spreads three labels over four grades.
    """

    name: str
    criteria: str
    grades: tuple[int, ...]


def _check_id(id_: str) -> str:
    if not id_:
        raise PydanticCustomError("empty", "is empty")
    # Files of ids hold one id per line.
    if id_ != id_.strip() or "\n" in id_:
        raise PydanticCustomError("blanks", "has surrounding blanks or a line break")
    return id_


def _canonical_text(text: str) -> str:
    canonical = canonicalize(text)
    if not canonical:
        raise PydanticCustomError("empty", "is empty")
    return canonical


def _canonical_note(note: ProbeNote) -> ProbeNote:
    title, body = canonicalize(note.title), canonicalize(note.body)
    if not title and not body:
        raise PydanticCustomError("empty", "title and body are empty")
    return ProbeNote(title=title, body=body)


def _check_label(label: int, info: ValidationInfo[int]) -> int:
    """Check a label of a file against the number of labels, which is the validation's context."""
    if not 0 <= label < info.context:
        raise PydanticCustomError("out_of_range", f"{label} is out of range 0..{info.context - 1}")
    return label


_Text = Annotated[str, AfterValidator(_canonical_text)]
_Label = Annotated[int, AfterValidator(_check_label)]


class _RowFinding(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    text: _Text
    grade: _Label


class _AnyRow(BaseModel):
    """A row of a file, with canonical texts."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: Annotated[str, AfterValidator(_check_id)]
    query: _Text
    note: Annotated[ProbeNote, AfterValidator(_canonical_note)]
    label: _Label | None = None
    # Accepted and not used: the recipe names the source, and no loss uses the annotators' variance.
    source: str = ""
    label_variance: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    findings: dict[Name, _RowFinding] = Field(default_factory=dict)

    def to_pair(self, source: Source) -> Pair:
        return Pair(
            id=self.id,
            query=self.query,
            note=Note(self.note.title or "", self.note.body),
            label=UNJUDGED if self.label is None else source.grades[self.label],
            source=source.name,
            criteria=source.criteria,
            findings={
                name: Finding(finding.text, source.grades[finding.grade])
                for name, finding in self.findings.items()
            },
        )


class _Row(_AnyRow):
    label: _Label


class _Seen:
    """The line where each id and each text was first seen."""

    def __init__(self) -> None:
        self._lines_of_ids: dict[str, int] = {}
        self._texts: dict[tuple[str, Note], tuple[int, int | None]] = {}

    def find_repeats(self, number: int, pair: Pair, label: int | None) -> Iterator[str]:
        first = self._lines_of_ids.setdefault(pair.id, number)
        if first != number:
            yield f"id: the same as in line {first}"
        first, first_label = self._texts.setdefault((pair.query, pair.note), (number, label))
        if first != number:
            yield f"the same pair as line {first}{'' if label == first_label else ', with another label'}"


def _describe(error: ValidationError) -> str:
    first = error.errors(include_input=False)[0]
    if first["type"] == "json_invalid":
        reason = first["msg"].removeprefix("Invalid JSON: ").replace("at line 1 column", "at column")
        return f"not JSON ({reason})"
    # Canonical, because a key may contain a line break.
    return "; ".join(f"{canonicalize(bad.field)}: {bad.message}" for bad in bad_fields(error, "row"))


def read_pairs(path: Path, source: Source, *, judged: bool = True) -> list[Pair]:
    """Read the pairs of a JSON-lines file in file order, skipping blank lines.

    A line is `{"id", "query", "note": {"title", "body"}, "label"}` and may have `source`, `label_variance` and `findings`.
    With `judged` false the label is optional, because a teacher will give it.
    Raises one DataError that says what is wrong with each line, for the first 20.
    """
    row_type, seen = _Row if judged else _AnyRow, _Seen()
    pairs, wrong = [], []
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = row_type.model_validate_json(line, context=len(source.grades))
        except ValidationError as error:
            complaint = _describe(error)
        else:
            pairs.append(row.to_pair(source))
            complaint = "; ".join(seen.find_repeats(number, pairs[-1], row.label))
        if complaint:
            wrong.append(f"line {number}: {complaint}")
    if wrong:
        raise DataError(f"{path}: {listed(wrong, '; ')}")
    if not pairs:
        raise DataError(f"{path}: has no pairs")
    return pairs


def read_lines(path: Path) -> list[str]:
    """Read the lines of a UTF-8 file, split at line feeds only. Raises DataError when it can't be read."""
    try:
        text = path.read_bytes().decode("utf-8-sig")  # with or without the byte order mark of Windows editors
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}: line {line}: not UTF-8") from error
    return text.split("\n")  # not splitlines, which also splits at U+2028


def listed(items: Sequence[str], joiner: str = ", ") -> str:
    """Join the first 20 items in one line, and count the rest."""
    more = len(items) - _MOST_NAMED
    return joiner.join(items[:_MOST_NAMED]) + (f"{joiner}and {more:,} more" if more > 0 else "")


def write_pairs(path: Path, pairs: Iterable[Pair]) -> None:
    """Write JSON lines that `read_pairs` reads back unchanged, with grades that map to themselves.

    Unjudged pairs have the label null, which is read with `judged` false.
    """
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for pair in pairs:
            file.write(json.dumps(_to_row(pair), ensure_ascii=False) + "\n")


def _to_row(pair: Pair) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": pair.id,
        "query": pair.query,
        "note": {"title": pair.note.title or None, "body": pair.note.body},
        "label": None if pair.label == UNJUDGED else pair.label,
        "source": pair.source,
    }
    if pair.findings:
        row["findings"] = {name: asdict(finding) for name, finding in pair.findings.items()}
    return row


def check_split(
    train: Sequence[Pair], dev: Sequence[Pair], *, known: str = "train", measured: str = "dev"
) -> None:
    """Check that no query or id of `dev` is in `train`. Raises DataError naming the pairs.

    Queries that differ only in case are the same. `known` and `measured` name the two sets in the error.
    """
    ids = {pair.id for pair in train}
    if leaked := leaking_ids(train, dev):
        raise DataError(f"{measured} pairs whose query is in {known} as well: {listed(leaked)}")
    if shared := [pair.id for pair in dev if pair.id in ids]:
        raise DataError(f"{measured} pairs whose id is in {known} as well: {listed(shared)}")


def leaking_ids(train: Sequence[Pair], dev: Sequence[Pair]) -> list[str]:
    """Return the ids of dev pairs whose query is in train, whatever its case, in dev's order."""
    trained = {folded_query(pair) for pair in train}
    return [pair.id for pair in dev if folded_query(pair) in trained]


def folded_query(pair: Pair) -> str:
    """Return the form in which two queries are compared: queries that differ only in case are the same."""
    return fold_query(pair.query)


def note_text(note: Note) -> str:
    """Return title and body on two lines, or the one that is not empty."""
    return f"{note.title}\n{note.body}".strip()


def fold_query(query: str) -> str:
    """Fold a query as `folded_query` does."""
    return canonicalize(query).casefold()


def query_hash(query: str) -> str:
    """Return a hash that is the same for queries that differ only in case, for comparing without the text."""
    return hashlib.sha256(fold_query(query).encode()).hexdigest()
