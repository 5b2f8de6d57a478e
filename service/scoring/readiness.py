"""Readiness: red, with its reason, until the loaded engine has reproduced the checkpoint's probes."""

import asyncio
import logging
from typing import Literal, get_args

from service.contract.checkpoint import Checkpoint
from service.contract.labels import LabelDistribution
from service.contract.probes import Probe, check_probes
from service.engines.base import Engine
from service.errors import EngineLostError, ManifestError, NotegradeError, NotReadyError
from service.observability.metrics import Metrics
from service.observability.redaction import log_redacted

logger = logging.getLogger(__name__)

Reason = Literal["engine_starting", "probing", "probe_mismatch", "engine_lost", "draining", "ok"]


class Readiness:
    """The one reason that holds now. `ok` means ready; `probe_mismatch` and `engine_lost` don't heal by themselves."""

    def __init__(self, metrics: Metrics) -> None:
        self._gauge = metrics.ready
        self._came_up = False
        self.reason: Reason = "engine_starting"
        self.detail = ""
        self.set(self.reason, "the engine is loading the checkpoint")

    def set(self, reason: Reason, detail: str) -> None:
        """Change the reason, unless draining, which nothing that still ends may undo; the detail is for people."""
        if self.reason == "draining":
            return
        self.reason, self.detail = reason, detail
        self._came_up = self._came_up or reason == "ok"
        for known in get_args(Reason):
            self._gauge.labels(known).set(known == reason)
        logger.info("readiness", extra={"reason": reason, "detail": detail})

    @property
    def is_ready(self) -> bool:
        return self.reason == "ok"

    @property
    def is_live(self) -> bool:
        """False when only a restart helps."""
        return self.reason not in ("engine_lost", "probe_mismatch")

    def require(self) -> None:
        """Raise EngineLostError or NotReadyError unless requests can be scored.

        They still can while draining: readiness is red then so that no more are sent, and those that come are served.
        """
        if self.reason == "engine_lost":
            raise EngineLostError(self.detail)
        if not self.is_ready and not (self.reason == "draining" and self._came_up):
            raise NotReadyError(f"{self.reason}: {self.detail}")


async def bring_up(engine: Engine, checkpoint: Checkpoint, readiness: Readiness) -> None:
    """Start the engine and probe it; ends with readiness `ok`, `probe_mismatch` or `engine_lost`."""
    try:
        await engine.start()
        readiness.set("probing", f"reproducing {len(checkpoint.probes)} probes in {engine.profile.dtype}")
        worst = await reproduce_probes(engine, checkpoint)
    except EngineLostError as error:
        if readiness.reason != "draining":  # stopped while it was loading: as meant
            logger.exception("the engine did not come up")
        readiness.set("engine_lost", str(error))
    except NotegradeError as error:
        # Numbers that are none, or a probe that can't be rendered, are no better than wrong numbers.
        readiness.set("probe_mismatch", str(error))
    except Exception:
        # The top of a task: without this, readiness would say "probing" for ever and nobody why.
        logger.exception("unforeseen error while starting")
        readiness.set("engine_lost", "unforeseen error while starting: the log has it")
    else:
        readiness.set("ok", f"probes reproduced within {worst:.2g}")


async def watch(engine: Engine, readiness: Readiness, interval_s: float) -> None:
    """Turn readiness off when the engine is lost after its start; runs until then or until cancelled."""
    while readiness.reason != "engine_lost":
        await asyncio.sleep(interval_s)
        if readiness.reason == "engine_starting":
            continue
        try:
            await engine.check()
        except EngineLostError as error:
            readiness.set("engine_lost", str(error))
            return
        except Exception as error:
            # The top of a task: one bug must not end the watch, which alone notices an engine that hangs.
            log_redacted(logger, "the engine could not be checked", error)


async def reproduce_probes(engine: Engine, checkpoint: Checkpoint) -> float:
    """Largest difference from the checkpoint's probes. Raises ProbeMismatchError when it is over the tolerance."""
    manifest = checkpoint.manifest
    tolerance = manifest.probe_tolerance.get(engine.profile.dtype)
    if tolerance is None:
        stated = ", ".join(manifest.probe_tolerance)
        raise ManifestError(
            f"the manifest states no probe tolerance for {engine.profile.dtype} (only for {stated})"
        )
    # As one batch: the prompts then share prefixes and steps, as they will in service.
    found = await asyncio.gather(*(_read(engine, checkpoint, probe) for probe in checkpoint.probes))
    return check_probes(checkpoint.probes, found, tolerance)


async def _read(engine: Engine, checkpoint: Checkpoint, probe: Probe) -> LabelDistribution:
    query, note = probe.canonical()
    [prompt] = await asyncio.to_thread(checkpoint.renderer.render, query, [note], probe.criteria)
    return (await engine.score(prompt.token_ids, priority=0)).distribution()
