"""A shadow over HTTP: another Notegrade service, called at its `/score` route."""

import asyncio
from typing import Any

import httpx

from service.contract.comparison import Graded
from service.contract.manifest import ReadingKind
from service.errors import ShadowError
from service.shadowing.base import SHADOW_HEADER, Mirrored, TargetAnswer


class HttpTarget:
    """Calls the service at a base URL, once per request. The timeout covers the whole call, connecting included."""

    def __init__(
        self, url: str, key: str, timeout_s: float, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        """`key` is empty where the other service needs none. `transport` is for tests."""
        headers = {SHADOW_HEADER: "1", **({"Authorization": f"Bearer {key}"} if key else {})}
        self._timeout_s = timeout_s
        # httpx's timeout applies to each part of a request; `score` has one for the whole.
        self._client = httpx.AsyncClient(
            base_url=url, headers=headers, timeout=timeout_s, transport=transport
        )

    async def score(self, mirrored: Mirrored) -> TargetAnswer:
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await self._client.post("/score", json=self._body(mirrored))
        except (httpx.HTTPError, httpx.InvalidURL, OSError, TimeoutError) as error:
            # Not chained: the exception may quote the response, which does not belong in our log.
            raise ShadowError(f"the shadow did not answer: {type(error).__name__}") from None
        if not response.is_success:
            raise ShadowError(f"the shadow refused the request: HTTP {response.status_code}")
        try:
            return _read(response.json(), mirrored)
        except (ValueError, LookupError, TypeError, AttributeError):
            raise ShadowError("the shadow's response is not a valid answer to /score") from None

    async def close(self) -> None:
        await self._client.aclose()

    def _body(self, mirrored: Mirrored) -> dict[str, Any]:
        return {
            "request_id": mirrored.request_id,
            "query": mirrored.query,
            "notes": [{"id": note.id, "title": note.title, "body": note.body} for note in mirrored.notes],
            "criteria": mirrored.criteria,
            "deadline_ms": int(self._timeout_s * 1000),
            "priority": "batch",
        }


def _read(answer: dict[str, Any], mirrored: Mirrored) -> TargetAnswer:
    results = {result["id"]: result for result in answer["results"]}
    ordered = [results[note.id] for note in mirrored.notes]
    scored = [result for result in ordered if result["outcome"] == "scored"]
    computed = bool(ordered) and all(result["source"] == "engine" for result in ordered)
    model = answer["model"]
    return TargetAnswer(
        name=str(model["name"]),
        fingerprint=str(model["fingerprint"]),
        grading_version=str(model["grading_version"]) if "grading_version" in model else None,
        grades=len(scored[0]["distribution"]) if scored else None,
        notes=tuple(_graded(result) if result["outcome"] == "scored" else None for result in ordered),
        readings=tuple(_reading(result) for result in ordered),
        engine_ms=float(answer["timing_ms"]["engine"]) if computed else None,
    )


def _graded(result: dict[str, Any]) -> Graded:
    grade, score = int(result["grade"]), float(result["score"])
    if not (0 <= grade < len(result["distribution"]) and 0 <= score <= 1):
        raise ValueError("a grade or a score is out of range")
    return Graded(grade, score)


def _reading(result: dict[str, Any]) -> ReadingKind:
    return "vectors" if result.get("reading") == "vectors" else "text"
