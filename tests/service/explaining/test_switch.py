import asyncio
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry

from service.errors import ExplanationStoreError
from service.explaining.base import ModeReading
from service.explaining.mode import Flip
from service.explaining.switch import Switch
from service.observability.metrics import Metrics
from tests.clock import Clock
from tests.service.explaining.replica import FaultyModeStore, Replica, turn_on
from tests.waiting import until


async def test_the_mode_is_off_until_somebody_flips_it() -> None:
    replica = Replica()
    assert replica.switch.now.name == "off"
    assert replica.count("explanation_mode", mode="off") == 1
    now = await replica.switch.flip(turn_on("on_request", ttl_s=60), 0)
    assert (now.name, now.left_s, now.last.owner) == ("on_request", 60, "ann")
    assert replica.count("explanation_mode", mode="on_request") == 1
    assert replica.count("explanation_mode", mode="off") == 0


async def test_the_mode_expires() -> None:
    replica = Replica()
    await replica.switch.flip(turn_on(ttl_s=60), 0)
    replica.clock.now += 59
    assert replica.switch.now.left_s == pytest.approx(1)
    replica.clock.now += 1
    assert (replica.switch.now.name, replica.switch.now.left_s) == ("off", None)
    assert replica.switch.now.last.mode == "all"
    assert replica.count("explanation_mode", mode="off") == 1


async def test_another_replica_s_flip_is_followed_by_its_message() -> None:
    replica = Replica()
    # Polling this seldom, only the message can bring the flip.
    follower = Switch(replica.store, Metrics(CollectorRegistry()), replica.clock, poll_s=1000)
    follower.start()
    await asyncio.sleep(0.05)
    await replica.store.flip(turn_on("all"), 0)
    await until(lambda: follower.now.name == "all")
    await follower.close()


async def test_another_replica_s_flip_is_followed_without_a_message() -> None:
    class MuteStore(FaultyModeStore):
        async def flip(self, flip: Flip, expected_revision: int) -> ModeReading:
            muted, self._changed = self._changed, asyncio.Condition()
            reading = await super().flip(flip, expected_revision)
            self._changed = muted
            return reading

    store = MuteStore()
    switch = Switch(store, Metrics(CollectorRegistry()), poll_s=0.01)
    switch.start()
    await store.flip(turn_on("all"), 0)
    await until(lambda: switch.now.name == "all")
    await switch.close()


async def test_without_the_store_the_last_known_mode_applies_until_it_expires() -> None:
    replica = Replica()
    replica.switch.start()
    await replica.switch.flip(turn_on(ttl_s=60), 0)
    replica.store.failing = True
    await until(lambda: replica.switch.now.unread_s is not None)
    replica.clock.now += 59
    kept = replica.switch.now
    assert kept.name == "all"
    assert kept.unread_s == pytest.approx(59)
    replica.clock.now += 2
    ended = replica.switch.now
    assert ended.name == "off"
    replica.store.failing = False
    await until(lambda: replica.switch.now.unread_s is None)
    assert replica.switch.now == replace(ended, unread_s=None)
    await replica.switch.close()


async def test_a_restarted_replica_keeps_the_remaining_time() -> None:
    replica = Replica()
    await replica.switch.flip(turn_on(ttl_s=60), 0)
    replica.clock.now += 20
    restarted = Switch(replica.store, Metrics(CollectorRegistry()), replica.clock)
    assert restarted.now.name == "off"
    assert (await restarted.look()).left_s == pytest.approx(40)


async def test_the_clocks_of_store_and_replica_need_not_agree() -> None:
    store = FaultyModeStore(clock=Clock(5.0))
    switch = Switch(store, Metrics(CollectorRegistry()), Clock(9_999_999.0))
    assert (await switch.flip(turn_on(ttl_s=60), 0)).left_s == pytest.approx(60)


async def test_off_on_this_replica_holds_until_the_next_flip() -> None:
    replica = Replica()
    await replica.switch.flip(turn_on(), 0)
    replica.switch.turn_off_here()
    assert (await replica.switch.look()).name == "off"
    assert (await replica.switch.flip(turn_on("on_request"), 1)).name == "on_request"


async def test_off_on_this_replica_ends_when_the_store_was_emptied() -> None:
    replica = Replica()
    for revision in range(5):
        await replica.switch.flip(turn_on(), revision)
    replica.switch.turn_off_here()
    replica.store._history.clear()
    await replica.switch.look()
    assert (await replica.switch.flip(turn_on(), 0)).name == "all"


async def test_a_store_that_does_not_answer_leaves_open_whether_a_flip_took_place() -> None:
    replica = Replica()
    replica.store.failing = True
    assert (await replica.switch.look()).unread_s == 0
    with pytest.raises(ExplanationStoreError, match=r"The flip may have taken place: read the mode again"):
        await replica.switch.flip(turn_on(), 0)
    assert replica.switch.now.name == "off"


async def test_a_flip_whose_answer_was_lost_is_read_back() -> None:
    replica = Replica()
    replica.store.losing_answers = True
    now = await replica.switch.flip(turn_on("sample", rate=0.1), 0)
    assert (now.name, now.last.revision, now.last.rate) == ("sample", 1, 0.1)
    assert len(await replica.switch.history(10)) == 1


async def test_the_error_for_a_flip_missing_when_read_back_says_that_it_may_still_apply() -> None:
    class SlowStore(FaultyModeStore):
        async def flip(self, flip: Flip, expected_revision: int) -> ModeReading:
            raise ExplanationStoreError("the connection was lost")

    switch = Switch(SlowStore(), Metrics(CollectorRegistry()))
    with pytest.raises(ExplanationStoreError, match=r"connection was lost\. The flip may have taken place"):
        await switch.flip(turn_on(), 0)
    assert switch.now.name == "off"


async def test_a_flip_is_logged_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    replica = Replica()
    with caplog.at_level("WARNING"):
        await replica.switch.flip(turn_on("sample", rate=0.1), 0)
    [record] = [each for each in caplog.records if each.message == "explanation mode changed"]
    logged = {name: vars(record)[name] for name in ("mode", "rate", "left_s", "owner", "reason", "revision")}
    assert logged == {
        "mode": "sample", "rate": 0.1, "left_s": 60, "owner": "ann", "reason": "a note ranks absurdly high", "revision": 1,
    }  # fmt: skip


async def test_a_store_that_may_evict_the_mode_is_warned_of_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class EvictingStore(FaultyModeStore):
        checks = 0

        async def evicting_policy(self) -> str:
            self.checks += 1
            return "allkeys-lru"

    monkeypatch.setattr("service.explaining.switch.CHECK_EVICTION_S", 0.01)
    store = EvictingStore()
    switch = Switch(store, Metrics(CollectorRegistry()))
    switch.start()
    await until(lambda: store.checks > 3)
    await switch.close()
    warnings = [each for each in caplog.records if "set maxmemory-policy to volatile-lru" in each.message]
    assert [vars(each)["maxmemory_policy"] for each in warnings] == ["allkeys-lru"]


async def test_a_bug_does_not_end_the_poll(caplog: pytest.LogCaptureFixture) -> None:
    replica = Replica()
    replica.store.broken = True
    replica.switch.start()
    await until(lambda: "the poll of explanation mode failed unexpectedly" in caplog.text)
    replica.store.broken = False
    await replica.store.flip(turn_on("all"), 0)
    await until(lambda: replica.switch.now.name == "all")
    await replica.switch.close()
