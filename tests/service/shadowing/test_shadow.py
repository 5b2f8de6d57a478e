import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry

from service.contract.comparison import Graded
from service.observability.metrics import Metrics
from service.shadowing.base import Mirrored, MirroredNote, TargetAnswer
from service.shadowing.memory_target import MemoryTarget
from service.shadowing.shadow import Shadow, ShadowOptions
from tests.service.shadowing.requests import mirrored
from tests.waiting import until

SHIFTED = Graded(2, 0.5)


def judge(_query: str, note: MirroredNote) -> Graded | None:
    return None if note.body == "unscored" else SHIFTED


class HeldTarget(MemoryTarget):
    """A shadow that answers once `gate` is set."""

    def __init__(self) -> None:
        super().__init__(judge, grades=4)
        self.gate = asyncio.Event()

    async def score(self, mirrored: Mirrored) -> TargetAnswer:
        await self.gate.wait()
        return await super().score(mirrored)


class Rig:
    def __init__(self, target: MemoryTarget, rate: float, queue: int, draw: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        options = ShadowOptions(shadow_rate=rate, shadow_queue=queue)
        self.shadow = Shadow(target, 4, options, Metrics(self.registry), draw)

    def count(self, metric: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"notegrade_shadow_{metric}", labels) or 0.0

    async def settled(self, requests: int) -> None:
        """Wait until that many requests have an outcome."""
        await until(lambda: sum(self.shadow.report()["mirrored"].values()) == requests)

    async def mirror(self, *requests: Mirrored) -> None:
        """Mirror the requests, and wait until they have an outcome."""
        before = sum(self.shadow.report()["mirrored"].values())
        for request in requests:
            self.shadow.offer(request)
        await self.settled(before + len(requests))


@asynccontextmanager
async def running(
    target: MemoryTarget, rate: float = 1.0, queue: int = 8, draw: Callable[[], float] = lambda: 0.5
) -> AsyncIterator[Rig]:
    made = Rig(target, rate, queue, draw)
    made.shadow.start()
    try:
        yield made
    finally:
        await made.shadow.close()


def test_every_outcome_has_a_series_at_0_from_the_start() -> None:
    rig = Rig(MemoryTarget(judge, 4), rate=1.0, queue=8, draw=lambda: 0.5)
    for outcome in ("compared", "failed", "dropped"):
        assert rig.registry.get_sample_value("notegrade_shadow_requests_total", {"outcome": outcome}) == 0


async def test_the_two_checkpoints_are_compared() -> None:
    async with running(MemoryTarget(judge, 4)) as rig:
        await rig.mirror(*[mirrored("one", "two")] * 3)
        report = rig.shadow.report()
    assert report["shadow"] == {
        "name": "memory",
        "fingerprint": "sha256:memory",
        "grading_version": "sha256:memory",
    }
    assert report["mirrored"] == {"compared": 3, "failed": 0, "dropped": 0}
    comparison = report["comparison"]
    assert (comparison["requests"], comparison["pairs"]) == (3, 6)
    assert comparison["flips"][1][2] == 6
    assert comparison["score_shift"]["mean"] == pytest.approx(0.2)
    assert report["engine_ms_per_pair"]["served"]["mean"] == pytest.approx(2.5)
    assert report["engine_ms_per_pair"]["shadow"]["mean"] == pytest.approx(1)
    assert rig.count("grades_total", served="1", shadow="2") == 6
    assert rig.count("requests_total", outcome="compared") == 3
    assert rig.count("score_distance_bucket", le="0.2") == 6
    assert rig.count("score_distance_bucket", le="0.1") == 0


async def test_readings_are_compared_apart() -> None:
    """A service of vectors is judged by a shadow that reads text, or the other way round."""
    both = mirrored("one", "two", "three")
    notes = (replace(both.notes[0], reading="vectors"), *both.notes[1:])
    async with running(MemoryTarget(judge, 4, reading="vectors")) as rig:
        await rig.mirror(replace(both, notes=notes))
        report = rig.shadow.report()
    found = {(each["served"], each["shadow"]): each["comparison"]["pairs"] for each in report["by_reading"]}
    assert found == {("text", "vectors"): 2, ("vectors", "vectors"): 1}
    assert report["comparison"]["pairs"] == 3


async def test_pairs_that_only_one_checkpoint_scored_are_left_out() -> None:
    async with running(MemoryTarget(judge, 4)) as rig:
        await rig.mirror(mirrored("one", "unscored"), mirrored("one", served=None))
        assert rig.shadow.report()["comparison"]["pairs"] == 1


async def test_engine_times_are_compared_only_where_both_engines_computed() -> None:
    async with running(MemoryTarget(judge, 4)) as rig:
        await rig.mirror(mirrored("one", engine_ms=None))
        cost = rig.shadow.report()["engine_ms_per_pair"]
    assert cost["served"]["mean"] is None
    assert cost["shadow"]["mean"] is None


async def test_the_rate_is_the_share_of_draws_below_it() -> None:
    draws = iter([0.0, 0.09, 0.1, 0.9])
    async with running(MemoryTarget(judge, 4), rate=0.1, draw=lambda: next(draws)) as rig:
        assert [rig.shadow.samples() for _ in range(4)] == [True, True, False, False]


async def test_requests_are_dropped_while_the_queue_is_full() -> None:
    target = HeldTarget()
    async with running(target, queue=2) as rig:
        for _ in range(20):
            rig.shadow.offer(mirrored("one"))
        # Nothing was awaited, so no worker had a turn: two wait and eighteen are dropped.
        assert rig.shadow.report()["mirrored"]["dropped"] == 18
        target.gate.set()
        await rig.settled(20)
    assert len(target.asked) == 2


async def test_failures_are_counted_and_logged_once_per_outage(caplog: pytest.LogCaptureFixture) -> None:
    target = MemoryTarget(judge, 4)
    target.is_down = True
    async with running(target) as rig:
        with caplog.at_level(logging.WARNING):
            for _ in range(5):
                await rig.mirror(mirrored("one"))
            target.is_down = False
            await rig.mirror(mirrored("one"))
            target.is_down = True
            await rig.mirror(mirrored("one"))
        assert rig.shadow.report()["mirrored"] == {"compared": 1, "failed": 6, "dropped": 0}
    assert [record.getMessage() for record in caplog.records] == ["shadowing fails"] * 2
    assert "quiet cafes" not in caplog.text


async def test_a_bug_fails_one_request_and_the_next_is_mirrored(caplog: pytest.LogCaptureFixture) -> None:
    def fail_once(query: str, note: MirroredNote) -> Graded | None:
        if note.body == "bad":
            raise RuntimeError("bug")
        return judge(query, note)

    async with running(MemoryTarget(fail_once, 4)) as rig:
        await rig.mirror(mirrored("bad"), mirrored("good"))
        assert rig.shadow.report()["mirrored"] == {"compared": 1, "failed": 1, "dropped": 0}
    assert "a shadow worker failed unexpectedly" in caplog.text


async def test_another_scale_cannot_be_compared(caplog: pytest.LogCaptureFixture) -> None:
    async with running(MemoryTarget(judge, 5)) as rig:
        await rig.mirror(mirrored("one"))
        assert rig.shadow.report()["mirrored"]["failed"] == 1
    assert "5 grades and this checkpoint has 4" in str(
        [record.__dict__.get("detail") for record in caplog.records]
    )


@pytest.mark.parametrize("version", ["fingerprint", "grading_version"])
async def test_a_new_checkpoint_of_the_other_service_starts_a_new_comparison(version: str) -> None:
    target = MemoryTarget(judge, 4)
    async with running(target) as rig:
        await rig.mirror(mirrored("one"))
        before = rig.shadow.report()["since"]
        setattr(target, version, "sha256:newer")
        await rig.mirror(mirrored("one"))
        report = rig.shadow.report()
    assert report["shadow"][version] == "sha256:newer"
    assert report["since"] >= before
    assert report["comparison"]["pairs"] == 1


async def test_the_report_is_empty_at_first_and_closing_does_not_mirror_what_waits() -> None:
    target = HeldTarget()
    async with running(target) as rig:
        report = rig.shadow.report()
        assert (report["shadow"], report["since"], report["comparison"]["requests"]) == (None, None, 0)
        for _ in range(5):
            rig.shadow.offer(mirrored("one"))
        await asyncio.sleep(0)
    assert target.asked == []
