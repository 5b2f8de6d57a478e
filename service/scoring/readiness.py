"""Readiness: false, with a reason, until the loaded engine has reproduced the checkpoint's probes."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Literal, get_args

from service.contract.checkpoint import Checkpoint, SecondReading
from service.contract.labels import LabelDistribution
from service.contract.probes import Probe, VectorProbe, check_probes
from service.contract.vector_prompt import VectorPrompt
from service.engines.base import Engine
from service.errors import (
    EngineLostError,
    ManifestError,
    NotegradeError,
    NotReadyError,
    ProbeMismatchError,
)
from service.observability.metrics import Metrics

logger = logging.getLogger(__name__)

Reason = Literal["engine_starting", "probing", "probe_mismatch", "engine_lost", "draining", "ok"]


class Readiness:
    """The current reason. `ok` means ready; `probe_mismatch` and `engine_lost` last until a restart."""

    def __init__(self, metrics: Metrics) -> None:
        self._gauge = metrics.ready
        self._was_ready = False
        self.reason: Reason = "engine_starting"
        self.detail = ""
        self.set(self.reason, "the engine is loading the checkpoint")

    def set(self, reason: Reason, detail: str) -> None:
        """Change the reason; nothing replaces `draining`. The detail is a sentence for people."""
        if self.reason == "draining":
            return
        self.reason, self.detail = reason, detail
        self._was_ready = self._was_ready or reason == "ok"
        for known in get_args(Reason):
            self._gauge.labels(known).set(known == reason)
        logger.info("readiness", extra={"reason": reason, "detail": detail})

    @property
    def is_ready(self) -> bool:
        return self.reason == "ok"

    @property
    def is_live(self) -> bool:
        """Return False where a restart helps: after a mismatch it does not, and would hide the alert."""
        return self.reason != "engine_lost"

    def require(self) -> None:
        """Raise EngineLostError, ProbeMismatchError or NotReadyError unless requests can be scored.

        Requests are still scored while draining: readiness is false then so that routers send no new ones.
        """
        if self.reason == "engine_lost":
            raise EngineLostError(self.detail)
        if self.reason == "probe_mismatch":
            raise ProbeMismatchError(self.detail)
        if not self.is_ready and not (self.reason == "draining" and self._was_ready):
            raise NotReadyError(f"{self.reason}: {self.detail}")


async def bring_up(engine: Engine, checkpoint: Checkpoint, readiness: Readiness) -> None:
    """Start the engine and check its probes. It ends with readiness `ok`, `probe_mismatch` or `engine_lost`."""
    try:
        await engine.start()
        readiness.set("probing", f"reproducing {len(checkpoint.probes)} probes in {engine.profile.dtype}")
        worst = await reproduce_probes(engine, checkpoint)
    except EngineLostError as error:
        if readiness.reason != "draining":  # else the service was stopped while the engine was loading
            logger.exception("the engine did not start")
        readiness.set("engine_lost", str(error))
    except NotegradeError as error:
        # NaN, or a probe that can't be rendered, is a mismatch like wrong numbers.
        readiness.set("probe_mismatch", str(error))
    except Exception:
        # The top of a task: without this, readiness would be "probing" for ever, without a reason in the log.
        logger.exception("unexpected error while starting")
        readiness.set("engine_lost", "unexpected error while starting: see the log")
    else:
        readiness.set("ok", f"probes reproduced within {worst:.2g}")


async def check_engine(engine: Engine, readiness: Readiness) -> None:
    """Check a loaded engine, and set readiness to `engine_lost` when it is lost. Call it periodically."""
    if readiness.reason in ("engine_starting", "engine_lost"):
        return
    try:
        await engine.check()
    except EngineLostError as error:
        readiness.set("engine_lost", str(error))


async def reproduce_probes(engine: Engine, checkpoint: Checkpoint) -> float:
    """Return the largest difference from the checkpoint's probes. Raises ProbeMismatchError when one is over the tolerance."""
    dtype = engine.profile.dtype
    # As one batch: the prompts then share prefixes and steps, like the prompts of a request.
    found = await asyncio.gather(*(_score_probe(engine, checkpoint, probe) for probe in checkpoint.probes))
    worst = check_probes(checkpoint.probes, found, _tolerance(checkpoint.manifest.probe_tolerance, dtype))
    if second := checkpoint.vectors:
        found = await asyncio.gather(*(_score_vectors(engine, second, probe) for probe in second.probes))
        tolerance = _tolerance(second.reading.probe_tolerance, dtype)
        worst = max(worst, check_probes(second.probes, found, tolerance))
    return worst


def _tolerance(stated: Mapping[str, float], dtype: str) -> float:
    if dtype not in stated:
        raise ManifestError(
            f"the manifest states no probe tolerance for {dtype} (only for {', '.join(stated)})"
        )
    return stated[dtype]


async def _score_probe(engine: Engine, checkpoint: Checkpoint, probe: Probe) -> LabelDistribution:
    query, note = probe.canonical()
    [prompt] = await asyncio.to_thread(checkpoint.renderer.render, query, [note], probe.criteria)
    return (await engine.score(prompt.token_ids, priority=0)).distribution()


async def _score_vectors(engine: Engine, second: SecondReading, probe: VectorProbe) -> LabelDistribution:
    query, _ = probe.canonical()
    prefix = await asyncio.to_thread(second.renderer.prefix, query, probe.criteria)
    prompt = VectorPrompt(prefix, probe.vectors, second.renderer.cue)
    return (await engine.score(prompt, priority=0)).distribution()
