"""The load generator measures slow, full and broken servers. Tests compare servers with each other, never with a clock."""

import itertools
import math
import statistics

import pytest

from load_tests.bench.drive import (
    Drive,
    Job,
    Sent,
    closed_loop,
    count_scored,
    make_jobs,
    open_loop,
    poisson,
    read_grades,
)
from tests.load_tests.bench.toy import Toy, ToyPeer, grade_of, made_requests, serving

PEER = ToyPeer("toy")


async def test_closed_loop_sends_each_job_once_with_bounded_concurrency() -> None:
    jobs = make_jobs(PEER, made_requests(12, notes=2))
    async with serving(Toy(0.002)) as url:
        drive = await closed_loop(url, jobs, clients=3, timeout_s=30)
    assert [each.job for each in drive.sent] == list(range(12))
    assert drive.outcomes == {"answered": 12}
    assert count_scored(PEER, drive, jobs) == [2] * 12
    at_once = [sum(a.sent_s <= each.sent_s < a.done_s for a in drive.sent) for each in drive.sent]
    assert max(at_once) == 3


async def test_closed_loop_starts_no_job_after_its_time_limit() -> None:
    jobs = make_jobs(PEER, made_requests(50))
    async with serving(Toy(0.05)) as url:
        drive = await closed_loop(url, jobs, clients=2, timeout_s=30, longest_s=0.2)
    assert [each.job for each in drive.sent] == list(range(len(drive.sent)))
    assert 2 <= len(drive.sent) < 50
    assert drive.outcomes == {"answered": len(drive.sent)}
    assert max(each.meant_s for each in drive.sent) < 0.2


async def test_open_loop_latency_includes_waiting_for_a_slow_server() -> None:
    """All requests are due at once: the last one waits for all others, in the server or before it."""
    jobs = make_jobs(PEER, made_requests(10))
    async with serving(Toy(0.02)) as url:
        at_once = await open_loop(url, [(0.0, job) for job in jobs], timeout_s=30)
        one_seat = await open_loop(url, [(0.0, job) for job in jobs], timeout_s=30, max_in_flight=1)
        waiting = await closed_loop(url, jobs, clients=1, timeout_s=30)
    # A client that waits for each answer would measure one service time instead of ten.
    one_ms = waiting.latencies_ms(30)["p50"]
    assert at_once.latencies_ms(30)["max"] > 3 * one_ms
    assert one_seat.latencies_ms(30)["max"] > 3 * one_ms
    # With one slot, each request is answered soon after it was sent: without its waiting time it would look fast.
    fastest_look = statistics.median(each.done_s - each.sent_s for each in one_seat.sent)
    assert statistics.median(each.done_s - each.meant_s for each in one_seat.sent) > 2 * fastest_look


async def test_requests_in_flight_are_bounded() -> None:
    jobs = make_jobs(PEER, made_requests(12))
    async with serving(Toy(0.005)) as url:
        drive = await open_loop(url, [(0.0, job) for job in jobs], timeout_s=30, max_in_flight=4)
    at_once = [sum(a.sent_s <= each.sent_s < a.done_s for a in drive.sent) for each in drive.sent]
    assert max(at_once) <= 4
    assert drive.outcomes["answered"] == 12


async def test_unanswered_requests_are_counted_and_as_slow_as_the_timeout() -> None:
    jobs = make_jobs(PEER, made_requests(12))
    async with serving(Toy(0.001, fail_every=3, refuse_every=4)) as url:
        drive = await closed_loop(url, jobs, clients=1, timeout_s=30)
    assert drive.outcomes == {"answered": 6, "failed": 4, "refused": 2}
    assert sum(count_scored(PEER, drive, jobs)) == 6
    assert drive.latencies_ms(30)["max"] == pytest.approx(30_000, rel=1e-3)


async def test_late_answer_is_a_timeout() -> None:
    jobs = make_jobs(PEER, made_requests(6))
    async with serving(Toy(60)) as url:
        drive = await open_loop(url, [(0.0, job) for job in jobs], timeout_s=0.2, max_in_flight=2)
    # This includes requests that never got a slot.
    assert drive.outcomes == {"timeout": 6}


async def test_absent_server_is_a_failure() -> None:
    jobs = make_jobs(PEER, made_requests(2))
    drive = await closed_loop("http://127.0.0.1:9", jobs, clients=1, timeout_s=30)
    assert drive.outcomes == {"failed": 2}


async def test_answers_are_read_as_grades() -> None:
    requests = made_requests(1, notes=2)
    jobs = make_jobs(PEER, requests)
    async with serving(Toy(0.001)) as url:
        drive = await closed_loop(url, jobs, clients=1, timeout_s=30)
    assert read_grades(PEER, drive.sent[0], jobs[0]) == [grade_of(prompt) for prompt in requests[0].prompts]


@pytest.mark.parametrize("answer", [b"nonsense", b"[1.0]", b"[1.0, 2.0, 3.0]", b'{"detail": "no"}'])
def test_answer_of_another_shape_has_no_scores(answer: bytes) -> None:
    sent = Sent(0, 0, 0, 0, 1, "answered", answer)
    assert all(map(math.isnan, read_grades(PEER, sent, Job("/score", b"", pairs=2))))
    assert count_scored(PEER, Drive((sent,), 1.0), [Job("/score", b"", pairs=2)]) == [0]


def test_arrivals_are_poisson_at_the_given_rate() -> None:
    moments = poisson("seed", rate=50, seconds=200)
    assert len(moments) == pytest.approx(10_000, rel=0.05)
    assert moments == sorted(moments) == poisson("seed", rate=50, seconds=200)
    assert max(moments) < 200
    gaps = [b - a for a, b in itertools.pairwise(moments)]
    # The mean and the standard deviation of an exponential distribution are equal.
    assert statistics.stdev(gaps) == pytest.approx(statistics.fmean(gaps), rel=0.05)
