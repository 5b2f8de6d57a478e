"""Explanation mode for the HTTP routes: which pairs of an answer are explained, when, and where to find the result."""

import asyncio
import json
import logging
import random
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from service.errors import (
    ExplanationDroppedError,
    ExplanationNotFoundError,
    ExplanationsOffError,
    ExplanationStoreError,
)
from service.explaining.base import TraceStore
from service.explaining.explainer import Explainer, Job
from service.explaining.guard import Guard
from service.explaining.mode import Flip, check_flip
from service.explaining.switch import ModeNow, Switch
from service.explaining.traces import ExplanationResult, GradedPair

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Requester:
    """The request that an explanation belongs to: its id, and the id of the key that sent it."""

    request_id: str
    key_id: str


class Explanations:
    """Combines the switch, the guard, the explainer and the trace store. Start it once, close it once."""

    def __init__(
        self,
        switch: Switch,
        guard: Guard,
        explainer: Explainer,
        store: TraceStore,
        max_ttl_s: float,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """`draw` gives a random number in [0, 1) for each pair that may be sampled."""
        self.switch = switch
        self._guard = guard
        self._explainer = explainer
        self._store = store
        self._max_ttl_s = max_ttl_s
        self._draw = draw

    def start(self) -> None:
        """Start to follow the mode, to guard scoring and to explain."""
        self.switch.start()
        self._guard.start()
        self._explainer.start()

    async def close(self) -> None:
        """Stop all of it; the stores stay open."""
        await self._explainer.close()
        await self._guard.close()
        await self.switch.close()

    def require_on(self) -> None:
        """Raise ExplanationsOffError while the mode is off."""
        if self.switch.now.name == "off":
            raise ExplanationsOffError(
                "explanation mode is off: an admin key can turn it on (PUT /admin/explanation-mode)"
            )

    async def flip(self, flip: Flip, expected_revision: int) -> ModeNow:
        """Flip the mode for all replicas.

        Raises InvalidRequestError, ModeRefusedError, ModeConflictError, ExplanationStoreError.
        """
        checked = check_flip(flip, self._max_ttl_s)
        if checked.mode != "off":
            await self.switch.look()  # another replica's guard may have turned the mode off a moment ago
            self._guard.require_calm()
        return await self.switch.flip(checked, expected_revision)

    async def explain(
        self,
        requester: Requester,
        pairs: Mapping[str, GradedPair],
        now: ModeNow,
        *,
        asked: bool,
        remaining_s: float,
    ) -> dict[str, ExplanationResult]:
        """Explain the pairs of one answer, by note id, as far as the mode `now` allows.

        If the caller asked, wait up to `remaining_s` and defer what is not finished. What the mode samples is deferred
        at once. `deferred` reads deferred explanations. Cancelling abandons the jobs that are waited for.
        """
        if now.name == "off":
            return dict.fromkeys(pairs, ExplanationResult("off")) if asked else {}
        results: dict[str, ExplanationResult] = {}
        jobs: dict[str, Job] = {}
        for note_id in pairs if asked else self._sample(list(pairs), now):
            try:
                jobs[note_id] = self._explainer.submit(pairs[note_id], asked=asked)
            except ExplanationDroppedError as error:
                results[note_id] = ExplanationResult("dropped", reason=error.reason)
        if asked:
            await _wait(jobs.values(), remaining_s)
        for note_id, job in jobs.items():
            if job.finished.done():
                results[note_id] = job.finished.result()
            else:
                job.on_finished = partial(self._keep, requester, note_id)
                results[note_id] = ExplanationResult("deferred")
        return results

    def submit(self, pair: GradedPair) -> Job:
        """Queue the explanation of one pair, to be read with `stream`.

        Raises ExplanationDroppedError, and ExplanationsOffError also where the mode went off while the pair was scored.
        """
        try:
            return self._explainer.submit(pair, asked=True)
        except ExplanationDroppedError:
            self.require_on()  # "try again later" would be wrong advice
            raise

    async def stream(self, job: Job) -> AsyncGenerator[str | ExplanationResult]:
        """Yield the trace's text as it is generated, then the result. Leaving early abandons the job."""
        try:
            while (piece := await job.pieces.get()) is not None:
                yield piece
            yield job.finished.result()
        finally:
            job.abandon()

    async def deferred(self, request_id: str, key_id: str | None) -> list[dict[str, Any]]:
        """Return the request's deferred explanations that are finished, by note; all keys' if `key_id` is None.

        Raises ExplanationNotFoundError, ExplanationStoreError.
        """
        stored = await self._store.get(request_id)
        try:
            entries = [json.loads(value) for value in stored.values()]
            mine = [entry["told"] for entry in entries if key_id in (None, entry["key_id"])]
            mine.sort(key=lambda entry: str(entry["note_id"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ExplanationStoreError(
                "the store's value for this request is not a list of explanations"
            ) from error
        if not mine:
            raise ExplanationNotFoundError(
                "no explanation is stored for this request: it was not sampled, is not finished yet, or has expired"
            )
        return mine

    def _sample(self, note_ids: Sequence[str], now: ModeNow) -> Sequence[str]:
        if now.name == "all":
            return note_ids
        if now.name == "sample":
            return [note_id for note_id in note_ids if self._draw() < (now.last.rate or 0)]
        return []

    async def _keep(self, requester: Requester, note_id: str, result: ExplanationResult) -> None:
        # Replicas of an earlier release, which may share this store, read the field `told`.
        entry = {"key_id": requester.key_id, "told": {"note_id": note_id, **asdict(result)}}
        # The key's id is part of the field: two callers may choose the same request id.
        field = f"{requester.key_id} {note_id}"
        try:
            await self._store.put(requester.request_id, {field: json.dumps(entry).encode()})
        except ExplanationStoreError as error:
            logger.warning("a deferred explanation could not be stored", extra={"detail": str(error)})


async def _wait(jobs: Collection[Job], timeout_s: float) -> None:
    try:
        if jobs:
            await asyncio.wait([job.finished for job in jobs], timeout=timeout_s)
    except asyncio.CancelledError:
        for job in jobs:
            job.abandon()
        raise
