"""Sends load over HTTP: closed loop (clients that wait for their answers) or open loop (arrivals at given times).

Bodies are encoded before and answers parsed after the measurement, since the load generator shares cores with the server.
"""

import asyncio
import json
import math
import random
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import aiohttp

from load_tests.bench.peer import Peer, Request
from load_tests.figures import percentiles_ms

# answered: 200. refused: 429 or 503, the server is overloaded. failed: another status, or a
# broken connection. timeout: no answer in time, even if the request was still waiting in this process.
Outcome = Literal["answered", "refused", "failed", "timeout"]
_REFUSALS = (429, 503)
_NO_HEADERS: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Job:
    """A request ready to send: path, encoded JSON, and its number of pairs."""

    path: str
    body: bytes
    pairs: int


@dataclass(frozen=True, slots=True)
class Sent:
    """The result of one job; times are seconds since the drive began.

    Attributes:
        meant_s: intended send time. Latency counts from here, which avoids coordinated omission.
        started_s: when this process handled it: `meant_s` plus the load generator's own lag.
        sent_s: when it was sent, after waiting for a free slot in flight.
    """

    job: int
    meant_s: float
    started_s: float
    sent_s: float
    done_s: float
    outcome: Outcome
    answer: bytes = b""


@dataclass(frozen=True, slots=True)
class Drive:
    """All requests sent, and the seconds from the start to the last answer."""

    sent: tuple[Sent, ...]
    seconds: float

    @property
    def outcomes(self) -> Counter[Outcome]:
        """Count the requests by outcome."""
        return Counter(each.outcome for each in self.sent)

    def latencies_ms(self, timeout_s: float) -> dict[str, float]:
        """Compute latency percentiles; an unanswered request counts as `timeout_s`, so fast refusals don't look good."""
        return percentiles_ms(
            each.done_s - each.meant_s if each.outcome == "answered" else timeout_s for each in self.sent
        )


def make_jobs(peer: Peer, requests: Sequence[Request]) -> list[Job]:
    """Encode each request for the peer."""
    jobs = []
    for request in requests:
        path, body = peer.call(request)
        jobs.append(Job(path, json.dumps(body).encode(), len(request.notes)))
    return jobs


async def closed_loop(
    url: str,
    jobs: Iterable[Job],
    clients: int,
    timeout_s: float,
    longest_s: float = math.inf,
    headers: Mapping[str, str] = _NO_HEADERS,
) -> Drive:
    """Send every job once, from `clients` clients that send the next job after each answer.

    The work is fixed, not the time, so every peer gets the same requests. Use many times as many jobs as clients, or the
    end, when clients run out of jobs, lowers the rate. No job is started after `longest_s`, which bounds slow peers.
    """
    sender = _Sender(url, clients, timeout_s, headers)
    waiting = iter(enumerate(jobs))

    async def client() -> None:
        for number, job in waiting:
            if sender.now() >= longest_s:
                return
            await sender.send(number, job, meant_s=sender.now())

    async with sender.session:
        await asyncio.gather(*(client() for _ in range(clients)))
        return sender.drive()


async def open_loop(
    url: str,
    plan: Sequence[tuple[float, Job]],
    timeout_s: float,
    max_in_flight: int = 1_000,
    headers: Mapping[str, str] = _NO_HEADERS,
) -> Drive:
    """Send each job at its time (seconds from the start) whether or not earlier ones are answered, then wait for all answers.

    At most `max_in_flight` requests are sent at once. Others wait here, and their waiting counts as latency.
    """
    sender = _Sender(url, max_in_flight, timeout_s, headers)
    async with sender.session:
        async with asyncio.TaskGroup() as asking:
            for number, (meant_s, job) in enumerate(plan):
                await asyncio.sleep(max(0.0, meant_s - sender.now()))
                asking.create_task(sender.send(number, job, meant_s))
        return sender.drive()


def poisson(seed: str, rate: float, seconds: float) -> list[float]:
    """Draw Poisson arrival times in [0, seconds) with a mean of `rate` per second."""
    rng, at, moments = random.Random(seed), 0.0, []
    while (at := at + rng.expovariate(rate)) < seconds:
        moments.append(at)
    return moments


class _Sender:
    """Sends jobs and records every outcome."""

    def __init__(self, url: str, slots: int, timeout_s: float, headers: Mapping[str, str]) -> None:
        # One session per drive: a server that was suspended in between closes its idle connections when it resumes.
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            headers={"Content-Type": "application/json", **headers},
        )
        self._url = url
        self._timeout_s = timeout_s
        self._slots = asyncio.Semaphore(slots)
        self._began = time.perf_counter()
        self._sent: list[Sent] = []

    def now(self) -> float:
        """Return the seconds since the drive began."""
        return time.perf_counter() - self._began

    def drive(self) -> Drive:
        """Return the results in the order of the jobs."""
        return Drive(tuple(sorted(self._sent, key=lambda each: each.job)), self.now())

    async def send(self, number: int, job: Job, meant_s: float) -> None:
        """Send a job, and wait until it is answered or `timeout_s` after its intended send time has passed."""
        started_s = sent_s = self.now()
        outcome: Outcome = "timeout"
        answer = b""
        try:
            async with asyncio.timeout(meant_s + self._timeout_s - started_s), self._slots:
                sent_s = self.now()
                outcome, answer = await self._post(job)
        except TimeoutError:
            pass
        self._sent.append(Sent(number, meant_s, started_s, sent_s, self.now(), outcome, answer))

    async def _post(self, job: Job) -> tuple[Outcome, bytes]:
        try:
            async with self.session.post(self._url + job.path, data=job.body) as response:
                answer = await response.read()
        except (aiohttp.ClientError, OSError):
            return "failed", b""
        if response.status == 200:
            return "answered", answer
        return ("refused" if response.status in _REFUSALS else "failed"), b""


def read_grades(peer: Peer, sent: Sent, job: Job) -> list[float]:
    """Return the expected grade of each note of the job; NaN for a note without one."""
    missing = [math.nan] * job.pairs
    if sent.outcome != "answered":
        return missing
    try:
        grades = peer.grades(json.loads(sent.answer))
    except (ValueError, KeyError, TypeError, IndexError, RuntimeError):  # the answer has an unexpected shape
        return missing
    return grades if len(grades) == job.pairs else missing


def count_scored(peer: Peer, drive: Drive, jobs: Sequence[Job]) -> list[int]:
    """Count the scored pairs of each of `drive.sent`: an answer with status 200 may leave some out."""
    return [
        sum(not math.isnan(grade) for grade in read_grades(peer, each, jobs[each.job])) for each in drive.sent
    ]
