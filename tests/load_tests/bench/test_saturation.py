"""The search finds the saturation of simulated queues, and of a server with a known capacity."""

import itertools

import pytest

from load_tests.bench.drive import Drive, Sent, closed_loop, count_scored, make_jobs, open_loop, poisson
from load_tests.bench.saturation import Probe, find_saturation, judge
from tests.load_tests.bench.toy import Toy, ToyPeer, made_requests, serving

PEER = ToyPeer("toy")
SEEDS = itertools.count()


def queue(rate: float, capacity: float, seconds: float = 200, answered: float = 1.0) -> Probe:
    """Simulate, without a clock, a server that answers one request at a time, `capacity` per second."""
    free_s, sent = 0.0, []
    for number, at in enumerate(poisson(f"{next(SEEDS)}", rate, seconds)):
        free_s = max(free_s, at) + 1 / capacity
        outcome = "answered" if number % 100 < 100 * answered else "refused"
        sent.append(Sent(number, at, at, at, free_s, "answered" if outcome == "answered" else "refused"))
    scored = [int(each.outcome == "answered") for each in sent]
    return judge(rate, seconds, Drive(tuple(sent), free_s), 1, scored)


@pytest.mark.parametrize("capacity", [7.0, 20.0, 90.0])
@pytest.mark.parametrize("first", [0.5, 1.0, 2.0])
async def test_search_finds_a_known_capacity_within_its_resolution(capacity: float, first: float) -> None:
    async def probe(rate: float) -> Probe:
        return queue(rate, capacity)

    found = await find_saturation(probe, first * capacity, resolution=0.05)
    # Goodput may be 5 % below the offered rate, so rates slightly above the capacity pass.
    assert found.kept_up == pytest.approx(capacity, rel=0.12)
    assert found.not_kept_up - found.kept_up <= 0.05 * found.kept_up
    assert found.goodput <= 1.02 * capacity
    assert found.goodput == max(each.goodput for each in found.probes if each.keeps_up)


@pytest.mark.parametrize(("rate", "keeps_up"), [(5.0, True), (8.0, True), (11.5, False), (20.0, False)])
def test_server_keeps_up_below_its_capacity_only(rate: float, keeps_up: bool) -> None:
    found = queue(rate, capacity=10)
    assert found.keeps_up is keeps_up


def test_backlog_grows_only_above_the_capacity() -> None:
    assert not any(queue(rate, capacity=10).backlog_grew for rate in (3, 6, 8, 9))
    assert all(queue(rate, capacity=10).backlog_grew for rate in (13, 15, 20, 40))


def test_server_that_refuses_does_not_keep_up() -> None:
    found = queue(5, capacity=10, answered=0.9)
    assert not found.backlog_grew
    assert not found.keeps_up


async def test_search_ends_if_no_rate_works() -> None:
    async def probe(rate: float) -> Probe:
        return queue(rate, capacity=10, answered=0)

    found = await find_saturation(probe, 10)
    assert found.kept_up == found.goodput == 0
    assert not any(each.keeps_up for each in found.probes)


@pytest.mark.alone
async def test_saturation_of_a_real_server_is_close_to_its_closed_loop_rate() -> None:
    jobs = make_jobs(PEER, made_requests(200))
    async with serving(Toy(0.004)) as url:
        in_hand = await closed_loop(url, jobs[:60], clients=4, timeout_s=30)
        capacity = len(in_hand.sent) / in_hand.seconds

        async def probe(rate: float) -> Probe:
            plan = list(zip(poisson(f"{rate}", rate, 0.8), itertools.cycle(jobs), strict=False))
            drive = await open_loop(url, plan, timeout_s=30)
            scored = count_scored(PEER, drive, [job for _, job in plan])
            return judge(rate, 0.8, drive, 1, scored)

        found = await find_saturation(probe, 0.5 * capacity, resolution=0.3)
    # A wide tolerance: the machine may be busy during either measurement.
    assert 0.4 * capacity < found.kept_up < 2 * capacity
    assert found.not_kept_up > found.kept_up
