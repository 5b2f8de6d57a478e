"""`notegrade score`: a file of notes against one query, without a server."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TextIO

from pydantic import ValidationError
from rich.table import Table
from rich.text import Text

from service.contract.validation import one_line
from service.errors import BadField, DeadlineExceededError, EngineRequestError
from service.http.schemas import NoteBody, RequestLimits
from service.scoring.scorer import Scorer
from service.scoring.types import PairResult, ScoringNote, ScoringRequest

# Two batches of the engine: enough to keep it busy, little enough for a progress bar that moves.
CHUNK_NOTES = 32


@dataclass(frozen=True, slots=True)
class NotesFile:
    """The notes that could be read, and what is wrong with the lines that couldn't (field: `line 7`)."""

    notes: tuple[ScoringNote, ...]
    unreadable: tuple[BadField, ...]


def read_notes(file: TextIO, limits: RequestLimits) -> NotesFile:
    """JSON lines of `{"id", "title", "body"}`; blank lines are passed over, a repeated id is unreadable."""
    notes: dict[str, ScoringNote] = {}
    unreadable = []
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            note = NoteBody.model_validate_json(line, context=limits)
        except ValidationError as error:
            unreadable.append(BadField(f"line {number}", one_line(error)))
            continue
        if note.id in notes:
            unreadable.append(BadField(f"line {number}", "its id stands on an earlier line too"))
            continue
        notes[note.id] = ScoringNote(note.id, note.title, note.body)
    return NotesFile(tuple(notes.values()), tuple(unreadable))


async def score_notes(
    scorer: Scorer,
    query: str,
    notes: Sequence[ScoringNote],
    criteria: str | None,
    advance: Callable[[int], None],
) -> list[PairResult]:
    """Every note's result in order; `advance` hears after each chunk how many were done.

    Raises InvalidRequestError for a query or criteria that the checkpoint doesn't take.
    """
    results: list[PairResult] = []
    for start in range(0, len(notes), CHUNK_NOTES):
        chunk = tuple(notes[start : start + CHUNK_NOTES])
        # Nobody waits at the other end: a deadline only keeps a wedged engine from hanging the command.
        request = ScoringRequest(
            "offline", query, chunk, deadline_ms=600_000, priority="batch", criteria=criteria
        )
        try:
            results += (await scorer.score(request)).results
        except (DeadlineExceededError, EngineRequestError):
            results += [PairResult(note.id, "failed") for note in chunk]
        advance(len(chunk))
    return results


def to_json_line(result: PairResult) -> str:
    """One line of `--json`, with the field names of the wire contract."""
    judgement = result.judgement
    row: dict[str, object] = {"id": result.note_id, "outcome": result.outcome}
    if judgement:
        row |= {
            "score": judgement.score,
            "grade": judgement.grade,
            "distribution": judgement.distribution,
            "margin": judgement.margin,
            "label_mass": judgement.label_mass,
            "truncated": result.truncated,
        }
    return json.dumps(row, ensure_ascii=False)


def to_table(query: str, notes: Sequence[ScoringNote], results: Sequence[PairResult]) -> Table:
    """Best first, for people."""
    # Text, not str: a title such as "[red]" is the user's, and no markup.
    table = Table(
        title=Text(f"How well {len(notes)} notes answer “{query}”"), title_justify="left", expand=True
    )
    for heading in ("#", "score", "grade", "margin"):
        table.add_column(heading, justify="right")
    table.add_column("id", overflow="ellipsis", no_wrap=True, max_width=32)
    # Takes what width is left: without a ratio, long notes would squeeze the ids away.
    table.add_column("note", overflow="ellipsis", no_wrap=True, ratio=1)
    for rank, (note, result) in enumerate(_best_first(notes, results), 1):
        shown = note.title or note.body
        judgement = result.judgement
        if judgement is None:
            table.add_row(
                str(rank), "–", "–", "–", Text(note.id), Text(f"{result.outcome}: {shown}"), style="red"
            )
            continue
        cells = (f"{judgement.score:.3f}", str(judgement.grade), f"{judgement.margin:.3f}")
        table.add_row(str(rank), *cells, Text(note.id), Text(shown + (" (cut)" if result.truncated else "")))
    return table


def _best_first(
    notes: Sequence[ScoringNote], results: Sequence[PairResult]
) -> Iterator[tuple[ScoringNote, PairResult]]:
    pairs = list(zip(notes, results, strict=True))
    yield from sorted(pairs, key=lambda pair: -pair[1].judgement.score if pair[1].judgement else 1.0)
