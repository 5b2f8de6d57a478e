"""Batches of pairs whose notes are read as vectors. The pairs of a query share its prefix, which is in the batch once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

_PADDING = -1  # the note number of positions that nothing sees


@dataclass(frozen=True, slots=True)
class VectorPair:
    """A pair as token ids. `prefix` ends before the note's vectors; `note` is what the encoder reads."""

    prefix: tuple[int, ...]
    note: tuple[int, ...]


def average_parts(length: int, parts: int, width: int) -> torch.Tensor:
    """Return the matrix (parts, width) that averages `length` rows over that many parts of equal length, or nearly so.

    A note with fewer tokens than parts has a part for each token; its other rows are zeros.
    """
    found = torch.zeros(parts, width)
    used = min(parts, length)
    for part in range(used):
        start, end = part * length // used, (part + 1) * length // used
        found[part, start:end] = 1 / (end - start)
    return found


def collate_pairs(pairs: Sequence[VectorPair], cue: Sequence[int], parts: int) -> dict[str, torch.Tensor]:
    """Return the batch as `VectorStudent` takes it, but for the distinct notes, which the encoder reads.

    Pairs are regrouped by prefix; `answers` are in the order of `pairs`.
    """
    notes = distinct_notes(pairs)
    number = {note: index for index, note in enumerate(notes)}
    by_prefix: dict[tuple[int, ...], list[int]] = {}
    for index, pair in enumerate(pairs):
        by_prefix.setdefault(pair.prefix, []).append(index)
    answers: dict[int, tuple[int, int]] = {}
    rows = []
    for query, (prefix, members) in enumerate(by_prefix.items()):
        row = _Row(prefix)
        for index in members:
            note = pairs[index].note
            first = number[note] * parts
            row.append(range(first, first + min(parts, len(note))), cue)
            answers[index] = (query, len(row.ids) - 1)
        rows.append(row)
    width = max(len(note) for note in notes)
    segments = _padded([row.segments for row in rows], _PADDING)
    return {
        "ids": _padded([row.ids for row in rows], 0),
        "slots": _padded([row.slots for row in rows], -1),
        "positions": _padded([row.positions for row in rows], 0),
        "mask": _seen(segments),
        "answers": torch.tensor([answers[index] for index in range(len(pairs))]),
        "parts": torch.stack([average_parts(len(note), parts, width) for note in notes]),
    }


def distinct_notes(pairs: Sequence[VectorPair]) -> list[tuple[int, ...]]:
    """Return the notes of the pairs in the order of the batch's notes."""
    return list(dict.fromkeys(pair.note for pair in pairs))


class _Row:
    """A query's prefix, followed by the vectors and the cue of each of its notes, which see the prefix and themselves alone."""

    def __init__(self, prefix: Sequence[int]) -> None:
        self._prefix = len(prefix)
        self._notes = 0
        self.ids = list(prefix)
        self.slots = [-1] * len(prefix)
        self.segments = [0] * len(prefix)
        self.positions = list(range(len(prefix)))

    def append(self, vectors: range, cue: Sequence[int]) -> None:
        size = len(vectors) + len(cue)
        self.ids += [0] * len(vectors) + list(cue)
        self.slots += [*vectors, *[-1] * len(cue)]
        self._notes += 1
        self.segments += [self._notes] * size
        self.positions += range(self._prefix, self._prefix + size)


def _seen(segments: torch.Tensor) -> torch.Tensor:
    """Return (queries, 1, length, length), True where a position sees an earlier one: of the prefix, or of its own note."""
    length = segments.shape[1]
    of_seer, of_seen = segments.unsqueeze(2), segments.unsqueeze(1)
    seen = ((of_seen == 0) | (of_seen == of_seer)) & torch.ones(length, length, dtype=torch.bool).tril()
    # Padding sees itself: a softmax over nothing is not a number.
    seen = (seen & (of_seen != _PADDING)) | torch.eye(length, dtype=torch.bool)
    return seen.unsqueeze(1)


def _padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)
