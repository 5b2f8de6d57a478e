"""What the shadow has found, for operators."""

from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel
from starlette.responses import Response

from service.errors import ShadowOffError
from service.http.auth import Caller
from service.http.parts import Parts, documents, require, to_json


class IntervalBody(BaseModel):
    """A mean and its 95 % interval, over requests; null where too little is known."""

    mean: float | None
    low: float | None
    high: float | None


class ShiftBody(IntervalBody):
    """The shadow's score less the served one; quantiles over pairs, right within 0.013."""

    p5: float | None
    p50: float | None
    p95: float | None


class ComparisonBody(BaseModel):
    """How the shadow differs from what was served.

    `flips[i][j]`: pairs that were served grade i, and that the shadow gave grade j. `rank_correlation` is Spearman's, by request.
    `same_first`: share of requests whose best note is the shadow's best as well.
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
    """A checkpoint."""

    name: str
    fingerprint: str


class MirroredBody(BaseModel):
    """Requests that were to be mirrored since this replica started, by what became of them."""

    compared: int
    failed: int
    dropped: int


class CostBody(BaseModel):
    """Milliseconds a pair in the engine, at each one's own load, of requests that both computed in full."""

    served: IntervalBody
    shadow: IntervalBody


class ShadowBody(BaseModel):
    """What this replica knows of the other service's checkpoint since it first answered (`since`, seconds since 1970)."""

    served: CheckpointBody
    shadow: CheckpointBody | None
    since: float | None
    rate: float
    mirrored: MirroredBody
    comparison: ComparisonBody
    engine_ms_per_pair: CostBody


def build_shadow_router(parts: Parts) -> APIRouter:
    """The route over the parts."""
    router = APIRouter()
    may_administer = Depends(require(parts.keyring, "admin"))

    @router.get(
        "/admin/shadow",
        tags=["operate"],
        response_model=ShadowBody,
        **documents(problems={404: "No shadow is set"}),
    )
    async def shadow(_caller: Annotated[Caller, may_administer]) -> Response:
        """How the checkpoint of the other service (NOTEGRADE_SHADOW_URL) differs from the one that serves here."""
        if parts.shadow is None:
            raise ShadowOffError("no shadow is set: NOTEGRADE_SHADOW_URL names the service to compare with")
        served = {"name": parts.manifest.name, "fingerprint": parts.manifest.fingerprint}
        return to_json(ShadowBody.model_validate({"served": served, **parts.shadow.report()}))

    return router
