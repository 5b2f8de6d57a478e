import math
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from service.contract.checkpoint import Checkpoint, load_checkpoint
from service.engines.base import EngineProfile, EnginePrompt
from service.engines.fake_engine import FakeEngine
from service.errors import EngineLostError, NotReadyError, ProbeMismatchError
from service.observability.metrics import Metrics
from service.scoring.readiness import Readiness, bring_up, check_engine, reproduce_probes
from tests.checkpoints import engine_model, fake_engine_for, make_vector_checkpoint


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def readiness(registry: CollectorRegistry) -> Readiness:
    return Readiness(Metrics(registry))


class UnstartableEngine(FakeEngine):
    async def start(self) -> None:
        raise EngineLostError("no memory")


class HalfPrecisionEngine(FakeEngine):
    @property
    def profile(self) -> EngineProfile:
        return EngineProfile(dtype="float16")


async def test_an_engine_that_reproduces_the_probes_is_ready(
    checkpoint: Checkpoint, readiness: Readiness, registry: CollectorRegistry
) -> None:
    with pytest.raises(NotReadyError, match="engine_starting"):
        readiness.require()
    await bring_up(fake_engine_for(checkpoint), checkpoint, readiness)
    assert (readiness.is_ready, readiness.is_live) == (True, True)
    readiness.require()
    assert registry.get_sample_value("notegrade_ready", {"reason": "ok"}) == 1
    assert registry.get_sample_value("notegrade_ready", {"reason": "engine_starting"}) == 0


async def test_an_engine_with_wrong_numbers_is_not_ready(
    checkpoint: Checkpoint, readiness: Readiness
) -> None:
    wrong = checkpoint.probes[1].model_copy(update={"distribution": (0.97, 0.01, 0.01, 0.01)})
    doubted = replace(checkpoint, probes=(checkpoint.probes[0], wrong))
    await bring_up(fake_engine_for(doubted), doubted, readiness)
    assert (readiness.reason, readiness.is_live) == ("probe_mismatch", True)
    with pytest.raises(ProbeMismatchError, match="1 of 2 probes differ"):
        readiness.require()


async def test_an_engine_that_reads_vectors_otherwise_is_not_ready(
    tmp_path: Path, readiness: Readiness, registry: CollectorRegistry
) -> None:
    whole = load_checkpoint(make_vector_checkpoint(tmp_path / "vectors"))
    assert whole.vectors
    engine = fake_engine_for(whole)
    await engine.start()
    assert await reproduce_probes(engine, whole) < 1e-6
    first, *others = whole.vectors.probes
    wrong = first.model_copy(update={"distribution": (0.01, 0.01, 0.01, 0.97)})
    doubted = replace(whole, vectors=replace(whole.vectors, probes=(wrong, *others)))
    await bring_up(fake_engine_for(doubted), doubted, readiness)
    assert (readiness.reason, readiness.is_live) == ("probe_mismatch", True)
    assert registry.get_sample_value("notegrade_ready", {"reason": "probe_mismatch"}) == 1


class NumblessEngine(FakeEngine):
    def logprobs(self, prompt: EnginePrompt) -> tuple[float, ...]:
        return (math.nan,) * 4


class BuggyEngine(FakeEngine):
    async def start(self) -> None:
        raise RuntimeError("a bug")


@pytest.mark.parametrize(
    ("kind", "reason", "detail"),
    [
        (HalfPrecisionEngine, "probe_mismatch", "no probe tolerance for float16"),
        (NumblessEngine, "probe_mismatch", "unusable label probabilities"),
        (UnstartableEngine, "engine_lost", "no memory"),
        (BuggyEngine, "engine_lost", "unexpected error while starting"),
    ],
)
async def test_an_engine_that_fails_while_it_starts_is_never_ready(
    checkpoint: Checkpoint,
    readiness: Readiness,
    caplog: pytest.LogCaptureFixture,
    kind: type[FakeEngine],
    reason: str,
    detail: str,
) -> None:
    await bring_up(kind(engine_model(checkpoint)), checkpoint, readiness)
    assert (readiness.reason, readiness.is_live) == (reason, reason != "engine_lost")
    with pytest.raises(EngineLostError if reason == "engine_lost" else ProbeMismatchError, match=detail):
        readiness.require()
    assert any(record.exc_info for record in caplog.records) == (reason == "engine_lost")


@pytest.mark.parametrize("kind", [FakeEngine, UnstartableEngine])
async def test_stopping_while_loading_stays_draining_and_logs_no_error(
    checkpoint: Checkpoint, readiness: Readiness, caplog: pytest.LogCaptureFixture, kind: type[FakeEngine]
) -> None:
    readiness.set("draining", "the service is stopping")
    await bring_up(kind(engine_model(checkpoint)), checkpoint, readiness)
    assert readiness.reason == "draining"
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_loaded_engine_is_lost_once_it_is_dead(checkpoint: Checkpoint, readiness: Readiness) -> None:
    engine = fake_engine_for(checkpoint)
    await check_engine(engine, readiness)
    assert readiness.reason == "engine_starting", "it is not checked while it loads"
    await bring_up(engine, checkpoint, readiness)
    await check_engine(engine, readiness)
    assert readiness.is_ready
    engine.kill()
    await check_engine(engine, readiness)
    assert not readiness.is_live
