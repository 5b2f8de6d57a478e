"""Explanation mode as the API sees it: which pairs of an answer are explained, when, and where one finds it."""

import asyncio
import json
import logging
import random
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from service.errors import (
    ExplanationDroppedError,
    ExplanationNotFoundError,
    ExplanationsOffError,
    ExplanationStoreError,
)
from service.explaining.base import TraceStore
from service.explaining.explainer import Explainer, Finished, GradedPair, Job, Keep
from service.explaining.guard import Guard
from service.explaining.mode import Flip, FlipLimits, Mode, check_flip
from service.explaining.switch import ModeNow, Switch
from service.explaining.traces import Explanation

logger = logging.getLogger(__name__)

Outcome = Literal["made", "off", "deferred", "dropped", "failed"]


@dataclass(frozen=True, slots=True)
class Told:
    """What became of a pair's explanation; `reason` says more where it was dropped or failed."""

    outcome: Outcome
    explanation: Explanation | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Asker:
    """On whose behalf: the request, and the id of the key that sent it."""

    request_id: str
    key_id: str


class Explanations:
    """The switch, the guard, the explainer and the store of traces, as one. Start it once, close it once."""

    def __init__(
        self,
        switch: Switch,
        guard: Guard,
        explainer: Explainer,
        store: TraceStore,
        limits: FlipLimits,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """`draw` gives a number from 0 to 1 for each pair that may be sampled."""
        self._switch = switch
        self._guard = guard
        self._explainer = explainer
        self._store = store
        self._limits = limits
        self._draw = draw

    def start(self) -> None:
        """Begin to follow the mode, to guard scoring and to explain."""
        self._switch.start()
        self._guard.start()
        self._explainer.start()

    async def close(self) -> None:
        """Stop all of it; the stores stay open."""
        await self._explainer.close()
        await self._guard.close()
        await self._switch.close()

    @property
    def now(self) -> ModeNow:
        """The mode that applies on this replica."""
        return self._switch.now

    def require_on(self) -> None:
        """Raises ExplanationsOffError while the mode is off."""
        if self.now.name == "off":
            raise ExplanationsOffError(
                "explanation mode is off: an admin key can turn it on (PUT /admin/explanation-mode)"
            )

    async def look(self) -> ModeNow:
        """The same, fresh from the store where that answers."""
        try:
            return await self._switch.look()
        except ExplanationStoreError:
            return self._switch.now

    async def flip(self, flip: Flip, expected_revision: int) -> ModeNow:
        """Flip the mode for all replicas.

        Raises InvalidRequestError, ModeRefusedError, ModeConflictError, ExplanationStoreError.
        """
        checked = check_flip(flip, self._limits)
        if checked.mode != "off":
            await self.look()  # a guard may have flipped it a moment ago
            self._guard.require_calm()
        return await self._switch.flip(checked, expected_revision)

    async def history(self, most: int) -> list[Mode]:
        """The last flips, newest first. Raises ExplanationStoreError."""
        return await self._switch.history(most)

    async def explain(
        self, asker: Asker, pairs: Mapping[str, GradedPair], now: ModeNow, *, asked: bool, remaining_s: float
    ) -> dict[str, Told]:
        """Explain the pairs of one answer, by note id, as the mode `now` allows.

        What was asked for is waited for until the time that remains is over, and then deferred; what the mode
        alone wants is deferred at once. Deferred ones are read with `kept`. Cancelling it abandons what is waited for.
        """
        if now.name == "off":
            return dict.fromkeys(pairs, Told("off")) if asked else {}
        told: dict[str, Told] = {}
        jobs: dict[str, Job] = {}
        for note_id in pairs if asked else self._chosen(list(pairs), now):
            try:
                jobs[note_id] = self._explainer.submit(pairs[note_id], asked=asked)
            except ExplanationDroppedError as error:
                told[note_id] = Told("dropped", reason=error.reason)
        if asked:
            await _wait(jobs.values(), remaining_s)
        for note_id, job in jobs.items():
            if job.finished.done():
                told[note_id] = told_of(job.finished.result())
            else:
                job.keep = self._keeper(asker, note_id)
                told[note_id] = Told("deferred")
        return told

    def begin(self, pair: GradedPair) -> Job:
        """Begin to explain one pair, to be read along with `read_along`.

        Raises ExplanationsOffError, also where the mode went off while the pair was scored, and ExplanationDroppedError.
        """
        try:
            return self._explainer.submit(pair, asked=True, read_along=True)
        except ExplanationDroppedError:
            self.require_on()  # to try again would be of no use
            raise

    async def read_along(self, job: Job) -> AsyncGenerator[str | Finished]:
        """The trace's text as it is written, then what came of it. Leaving early abandons it."""
        assert job.pieces  # noqa: S101 - made by `begin`
        try:
            while (piece := await job.pieces.get()) is not None:
                yield piece
            yield job.finished.result()
        finally:
            job.abandon()

    async def kept(self, request_id: str, key_id: str | None) -> list[dict[str, Any]]:
        """What was deferred and is done by now, by note; of that key alone unless it is None.

        Raises ExplanationNotFoundError, ExplanationStoreError.
        """
        found = await self._store.get(request_id)
        try:
            entries = [json.loads(value) for value in found.values()]
            mine = [entry["told"] for entry in entries if key_id in (None, entry["key_id"])]
        except (ValueError, KeyError, TypeError) as error:
            raise ExplanationStoreError("what the store holds there are no explanations of ours") from error
        if not mine:
            raise ExplanationNotFoundError(
                "none is kept for this request: it was not sampled, is not written yet, or its time is over"
            )
        return sorted(mine, key=lambda entry: str(entry["note_id"]))

    def _chosen(self, note_ids: Sequence[str], now: ModeNow) -> list[str]:
        if now.name == "all":
            return list(note_ids)
        if now.name == "sample":
            return [note_id for note_id in note_ids if self._draw() < (now.last.rate or 0)]
        return []

    def _keeper(self, asker: Asker, note_id: str) -> Keep:
        async def keep(result: Finished) -> None:
            told = {"note_id": note_id, **told_fields(told_of(result))}
            value = json.dumps({"key_id": asker.key_id, "told": told}).encode()
            try:
                # Two callers may have chosen the same id for their requests.
                await self._store.put(asker.request_id, {f"{asker.key_id} {note_id}": value})
            except ExplanationStoreError as error:
                logger.warning("an explanation could not be kept", extra={"detail": str(error)})

        return keep


def told_fields(told: Told) -> dict[str, Any]:
    """As JSON-like data: what the wire and the store hold."""
    fields: dict[str, Any] = {"outcome": told.outcome, "reason": told.reason}
    if told.explanation:
        found = told.explanation
        steps = [{"criterion": s.criterion, "finding": s.finding, "grade": s.grade} for s in found.steps]
        fields |= {**asdict(found), "steps": steps}
    return fields


def told_of(result: Finished) -> Told:
    """What came of it, for telling."""
    if isinstance(result, Explanation):
        return Told("made", result)
    if isinstance(result, ExplanationDroppedError):
        return Told("dropped", reason=result.reason)
    return Told("failed", reason=result.type.rpartition(":")[2])


async def _wait(jobs: Collection[Job], timeout_s: float) -> None:
    try:
        if jobs:
            await asyncio.wait([job.finished for job in jobs], timeout=timeout_s)
    except asyncio.CancelledError:
        for job in jobs:
            job.abandon()
        raise
