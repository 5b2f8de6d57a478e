"""Score a file of notes against one query without a server, for `notegrade score`."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TextIO

from pydantic import ValidationError
from rich.table import Table
from rich.text import Text

from service.contract.validation import one_line
from service.errors import BadField, DeadlineExceededError, EngineRequestError
from service.http.schemas import BodyChecks, NoteBody, RequestLimits
from service.scoring.scorer import Scorer
from service.scoring.types import PairResult, ScoringNote, ScoringRequest

# Enough notes to keep the engine busy, few enough for a progress bar that moves.
CHUNK_NOTES = 32


def read_notes(file: TextIO, limits: RequestLimits) -> tuple[list[ScoringNote], list[BadField]]:
    """Read JSON lines of `{"id", "title", "body"}`, and list the errors of unreadable lines (field: `line 7`).

    Blank lines are skipped; a line that repeats an id is unreadable.
    """
    notes: dict[str, ScoringNote] = {}
    unreadable = []
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            note = NoteBody.model_validate_json(line, context=BodyChecks(limits))
        except ValidationError as error:
            unreadable.append(BadField(f"line {number}", one_line(error)))
            continue
        if note.id in notes:
            unreadable.append(BadField(f"line {number}", "an earlier line has the same id"))
            continue
        notes[note.id] = ScoringNote(note.id, note.title, note.body)
    return list(notes.values()), unreadable


async def score_notes(
    scorer: Scorer,
    query: str,
    notes: Sequence[ScoringNote],
    criteria: str | None,
    advance: Callable[[int], None],
) -> list[PairResult]:
    """Score every note, in order; `advance` is called after each chunk with its number of notes.

    Raises InvalidRequestError for a query that is too long for the checkpoint, or criteria that it does not have.
    """
    results: list[PairResult] = []
    for start in range(0, len(notes), CHUNK_NOTES):
        chunk = tuple(notes[start : start + CHUNK_NOTES])
        # The deadline only ends the command if the engine hangs.
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
    """Write one line of `--json`, with the field names of the wire contract."""
    judgement = result.judgement
    row: dict[str, object] = {"id": result.note_id, "outcome": result.outcome}
    if judgement:
        row |= {**asdict(judgement), "truncated": result.truncated}
    return json.dumps(row, ensure_ascii=False)


def to_table(query: str, notes: Sequence[ScoringNote], results: Sequence[PairResult]) -> Table:
    """Build a table of the notes, best first."""
    # Text, not str, because a title such as "[red]" must not be read as markup.
    table = Table(
        title=Text(f"How well {len(notes)} notes answer “{query}”"), title_justify="left", expand=True
    )
    for heading in ("#", "score", "grade", "margin"):
        table.add_column(heading, justify="right")
    table.add_column("id", overflow="ellipsis", no_wrap=True, max_width=32)
    # The last column takes the remaining width: without a ratio, long notes would leave none for the ids.
    table.add_column("note", overflow="ellipsis", no_wrap=True, ratio=1)
    best_first = sorted(
        zip(notes, results, strict=True),
        key=lambda pair: -pair[1].judgement.score if pair[1].judgement else 1.0,
    )
    for rank, (note, result) in enumerate(best_first, 1):
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
