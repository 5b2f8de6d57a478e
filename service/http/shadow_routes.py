"""The route for operators that compares the shadow with the serving checkpoint."""

from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel
from starlette.responses import Response

from service.errors import ShadowOffError
from service.http.auth import Caller
from service.http.parts import Parts, documents, require, to_json


class IntervalBody(BaseModel):
    """A mean and its 95 % interval, over requests; null where there is too little data."""

    mean: float | None
    low: float | None
    high: float | None


class ShiftBody(IntervalBody):
    """The shadow's score minus the served one. Quantiles are over pairs, accurate to 0.013."""

    p5: float | None
    p50: float | None
    p95: float | None


class ComparisonBody(BaseModel):
    """The difference between the shadow's answers and the served ones.

    `flips[i][j]` counts the pairs with served grade i and the shadow's grade j. `rank_correlation` is Spearman's, a mean over requests.
    `same_first` is the share of requests in which both rank the same note first.
    """

    requests: int
    pairs: int
    same_grade: IntervalBody
    flips: list[list[int]]
    score_shift: ShiftBody
    score_distance: IntervalBody
    rank_correlation: IntervalBody
    same_first: IntervalBody


class CheckpointBody(BaseModel):
    """A checkpoint's name and fingerprint."""

    name: str
    fingerprint: str


class MirroredBody(BaseModel):
    """Outcomes of the requests sampled for mirroring since this replica started."""

    compared: int
    failed: int
    dropped: int


class CostBody(BaseModel):
    """Engine time in milliseconds per pair, each at its own load, over requests that both engines computed in full."""

    served: IntervalBody
    shadow: IntervalBody


class ShadowBody(BaseModel):
    """This replica's comparison with the shadow, since the shadow's checkpoint first answered (`since`, seconds since 1970)."""

    served: CheckpointBody
    shadow: CheckpointBody | None
    since: float | None
    rate: float
    mirrored: MirroredBody
    comparison: ComparisonBody
    engine_ms_per_pair: CostBody


def build_shadow_router(parts: Parts) -> APIRouter:
    """Build the router."""
    router = APIRouter()
    may_administer = Depends(require(parts.keyring, "admin"))

    @router.get(
        "/admin/shadow",
        tags=["operate"],
        response_model=ShadowBody,
        **documents(problems={404: "No shadow is set"}),
    )
    async def shadow(_caller: Annotated[Caller, may_administer]) -> Response:
        """Compare the checkpoint of the shadow (NOTEGRADE_SHADOW_URL) with the one that serves here."""
        if parts.shadow is None:
            raise ShadowOffError("no shadow is set: NOTEGRADE_SHADOW_URL names the service to compare with")
        served = {"name": parts.manifest.name, "fingerprint": parts.manifest.fingerprint}
        return to_json(ShadowBody.model_validate({"served": served, **parts.shadow.report()}))

    return router
