"""The route that reports how the shadow's scores differ."""

from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel
from starlette.responses import Response

from service.contract.manifest import ReadingKind
from service.errors import ShadowOffError
from service.http.answering import Api, documents, to_json
from service.http.auth import Caller, require


class IntervalBody(BaseModel):
    """A mean and its 95 % interval over requests; null if there are too few."""

    mean: float | None
    low: float | None
    high: float | None


class ShiftBody(IntervalBody):
    """The shadow's score minus the served score; quantiles over pairs, accurate to 0.013."""

    p5: float | None
    p50: float | None
    p95: float | None


class ComparisonBody(BaseModel):
    """The difference between the shadow's scores and the served ones.

    `flips[i][j]` counts pairs with served grade i and the shadow's grade j. `rank_correlation` is Spearman's, within each request.
    `same_first` is the share of requests whose best note is also the shadow's best.
    """

    requests: int
    pairs: int
    same_grade: IntervalBody
    flips: list[list[int]]
    score_shift: ShiftBody
    score_distance: IntervalBody
    rank_correlation: IntervalBody
    same_first: IntervalBody


class ReadingsBody(BaseModel):
    """The comparison of the pairs whose notes the two services read in these ways."""

    served: ReadingKind
    shadow: ReadingKind
    comparison: ComparisonBody


class CheckpointBody(BaseModel):
    """Identifies a checkpoint. The grading version is null for a shadow of a release without one."""

    name: str
    fingerprint: str
    grading_version: str | None


class MirroredBody(BaseModel):
    """Counts of the requests that were sampled to be mirrored since this replica started, by outcome."""

    compared: int
    failed: int
    dropped: int


class CostBody(BaseModel):
    """Engine milliseconds per pair, each service at its own load, over requests that both computed without a cache."""

    served: IntervalBody
    shadow: IntervalBody


class ShadowBody(BaseModel):
    """This replica's comparison with the shadow since the shadow's checkpoint first answered (`since`, seconds since 1970)."""

    served: CheckpointBody
    shadow: CheckpointBody | None
    since: float | None
    rate: float
    mirrored: MirroredBody
    comparison: ComparisonBody
    by_reading: list[ReadingsBody]
    engine_ms_per_pair: CostBody


def build_shadow_router(api: Api) -> APIRouter:
    """Build the route of the shadow's report."""
    router = APIRouter()
    may_administer = Depends(require(api.keyring, "admin"))

    @router.get(
        "/admin/shadow",
        tags=["operate"],
        response_model=ShadowBody,
        **documents(problems={404: "No shadow is configured"}),
    )
    async def shadow(_caller: Annotated[Caller, may_administer]) -> Response:
        """Compare the scores of the shadow (NOTEGRADE_SHADOW_URL) with those of this service."""
        manifest, mirror = api.backend.checkpoint.manifest, api.backend.shadow
        if mirror is None:
            raise ShadowOffError(
                "no shadow is configured: NOTEGRADE_SHADOW_URL names the service to compare with"
            )
        served = {"name": manifest.name, **manifest.versions}
        return to_json(ShadowBody.model_validate({"served": served, **mirror.report()}))

    return router
