"""Makes the engine's prompt of each pair: from the note's text, or from its vectors where these are stored."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from service.contract.checkpoint import Checkpoint, SecondReading
from service.contract.manifest import ReadingKind
from service.contract.prompt import Note
from service.contract.vector_prompt import NoteVectors, VectorPrompt
from service.engines.base import EnginePrompt, count_tokens

ReadingMode = Literal["text", "auto", "vectors"]


@dataclass(frozen=True, slots=True)
class PairPrompt:
    """A pair's prompt, its length in tokens, whether its note was truncated, and whether it holds text or vectors."""

    prompt: EnginePrompt
    tokens: int
    truncated: bool
    kind: ReadingKind


class VectorSource(Protocol):
    """Where the vectors of notes come from."""

    async def lookup(self, notes: Sequence[Note]) -> list[NoteVectors | None]:
        """Return the vectors of each note in order, None where there are none. The texts must be canonical. Never raises."""
        ...

    def queue(self, notes: Sequence[Note]) -> object:
        """Queue notes that `lookup` has just not found, to be encoded when the service is idle."""
        ...


class Prompter:
    """Reads notes as text; with `vectors`, those that have vectors as vectors, and queues the others to get some."""

    def __init__(
        self, checkpoint: Checkpoint, mode: ReadingMode = "text", vectors: VectorSource | None = None
    ) -> None:
        """With `mode` `vectors`, a note without vectors has no prompt; with `text`, vectors are not looked up."""
        self._renderer = checkpoint.renderer
        self._second = checkpoint.vectors if mode != "text" else None
        self._mode = mode
        self._vectors = vectors

    @property
    def mode(self) -> ReadingMode:
        """Return the mode; it is `text` for a checkpoint that reads no vectors."""
        return self._mode if self._second else "text"

    def least_tokens(self, criteria: str) -> int:
        """Return the tokens of the shortest prompt under these criteria: with no query, and no note."""
        return 1 if self._second else self._renderer.overhead_tokens(criteria)

    async def make(self, query: str, notes: Sequence[Note], criteria: str) -> list[PairPrompt | None]:
        """Return the prompt of each note in order. The texts must be canonical.

        Raises InvalidRequestError when the query has more tokens than its limit.
        """
        if self._second is None or self._vectors is None:
            return list(await asyncio.to_thread(self._from_text, query, notes, criteria))
        found = await self._vectors.lookup(notes)
        without = [note for note, vectors in zip(notes, found, strict=True) if vectors is None]
        self._vectors.queue(without)
        return await asyncio.to_thread(self._make, self._second, query, notes, found, criteria)

    def _from_text(self, query: str, notes: Sequence[Note], criteria: str) -> list[PairPrompt]:
        rendered = self._renderer.render(query, notes, criteria)
        return [PairPrompt(each.token_ids, len(each.token_ids), each.truncated, "text") for each in rendered]

    def _make(
        self,
        second: SecondReading,
        query: str,
        notes: Sequence[Note],
        found: Sequence[NoteVectors | None],
        criteria: str,
    ) -> list[PairPrompt | None]:
        prefix = second.renderer.prefix(query, criteria)
        as_text: dict[int, PairPrompt] = {}
        missing = [index for index, vectors in enumerate(found) if vectors is None]
        if missing and self._mode == "auto":
            of_missing = self._from_text(query, [notes[index] for index in missing], criteria)
            as_text = dict(zip(missing, of_missing, strict=True))
        return [
            _from_vectors(second, prefix, vectors) if vectors else as_text.get(index)
            for index, vectors in enumerate(found)
        ]


def _from_vectors(second: SecondReading, prefix: tuple[int, ...], vectors: NoteVectors) -> PairPrompt:
    prompt = VectorPrompt(prefix, vectors.rows, second.renderer.cue)
    return PairPrompt(prompt, count_tokens(prompt, second.reading.width), vectors.truncated, "vectors")
