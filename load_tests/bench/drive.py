"""The load: a fixed number of clients that each wait for their answer, or arrivals that wait for nobody.

Bodies are encoded before, and answers read after: while the clock runs, the load generator only sends and receives, since
it takes its time from the same cores as the server.
"""

import asyncio
import json
import math
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import aiohttp

from load_tests.bench.latencies import Latencies
from load_tests.bench.peer import Peer, Request

# answered: 200 for all of a request's calls. refused: 429 or 503, as a server says that it has too much to do.
# failed: any other status, or a broken connection. timeout: not answered in time, whether it left this process or not.
Outcome = Literal["answered", "refused", "failed", "timeout"]
_REFUSALS = (429, 503)


@dataclass(frozen=True, slots=True)
class Job:
    """A request made ready: (path, encoded JSON) of each call, and how many pairs it asks for."""

    calls: tuple[tuple[str, bytes], ...]
    pairs: int


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of one job; moments are seconds since the drive began.

    Attributes:
        meant_s: when it was to be sent. Latency counts from here, so that a slow server can't hide the wait of those
            that it kept from being sent (coordinated omission).
        started_s: when this process got round to it: later than `meant_s` by the generator's own lag.
        sent_s: when it was sent, after waiting for one of the seats that bound what is in flight.
        answers: the body of each call, as it came.
    """

    job: int
    meant_s: float
    started_s: float
    sent_s: float
    done_s: float
    outcome: Outcome
    answers: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Drive:
    """All that was sent, and how long it took from the first moment to the last answer, in seconds."""

    sent: tuple[Sent, ...]
    seconds: float

    @property
    def outcomes(self) -> Counter[Outcome]:
        """Requests by what became of them."""
        return Counter(each.outcome for each in self.sent)

    def latencies(self, timeout_s: float) -> Latencies:
        """Of all requests. One that was not answered counts as `timeout_s`, or a fast refusal would look like a fast answer."""
        return Latencies(
            each.done_s - each.meant_s if each.outcome == "answered" else timeout_s for each in self.sent
        )


def make_jobs(peer: Peer, requests: Sequence[Request]) -> list[Job]:
    """What the peer is to be sent for each request."""
    return [
        Job(
            tuple((call.path, json.dumps(call.body).encode()) for call in peer.calls(request)),
            len(request.notes),
        )
        for request in requests
    ]


async def closed_loop(
    url: str, jobs: Sequence[Job], clients: int, timeout_s: float, longest_s: float = math.inf
) -> Drive:
    """Every job once, from so many clients that send the next one when the last is answered.

    A fixed amount of work, and not a fixed time: so every peer is asked the very same. There should be many times as many
    jobs as clients, or the end, when clients run out of work, weighs on the rate. After `longest_s` no further job is begun:
    who is twenty times as slow as the others shall not make them wait twenty times as long.
    """
    sender = _Sender(url, seats=clients, timeout_s=timeout_s)
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
    url: str, plan: Sequence[tuple[float, Job]], timeout_s: float, max_in_flight: int = 1_000
) -> Drive:
    """Each job at its moment (seconds from the start), however late the answers are; waits for all of them at the end.

    No more than `max_in_flight` are with the server at once. Those beyond it wait here, and their latency counts on.
    """
    sender = _Sender(url, seats=max_in_flight, timeout_s=timeout_s)
    async with sender.session:
        async with asyncio.TaskGroup() as asking:
            for number, (meant_s, job) in enumerate(plan):
                await asyncio.sleep(max(0.0, meant_s - sender.now()))
                asking.create_task(sender.send(number, job, meant_s))
        return sender.drive()


def poisson(seed: str, rate: float, seconds: float) -> list[float]:
    """Moments of arrival in [0, seconds), independent of each other, `rate` a second on average."""
    return list(_poisson(random.Random(seed), rate, seconds))


def _poisson(rng: random.Random, rate: float, seconds: float) -> Iterator[float]:
    at = rng.expovariate(rate)
    while at < seconds:
        yield at
        at += rng.expovariate(rate)


class _Sender:
    """Sends jobs and notes what became of them, whatever that is."""

    def __init__(self, url: str, seats: int, timeout_s: float) -> None:
        # A session for each drive: a server that stood still meanwhile closes its idle connections as it goes on.
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            headers={"Content-Type": "application/json"},
        )
        self._url = url
        self._timeout_s = timeout_s
        self._seats = asyncio.Semaphore(seats)
        self._began = time.perf_counter()
        self._sent: list[Sent] = []

    def now(self) -> float:
        """Seconds since the drive began."""
        return time.perf_counter() - self._began

    def drive(self) -> Drive:
        """What was sent, in the order in which it was meant to be."""
        return Drive(tuple(sorted(self._sent, key=lambda each: each.job)), self.now())

    async def send(self, number: int, job: Job, meant_s: float) -> None:
        """Returns when the job is answered or given up, `timeout_s` after it was meant to be sent."""
        started_s = sent_s = self.now()
        outcome: Outcome = "timeout"
        answers: tuple[bytes, ...] = ()
        try:
            async with asyncio.timeout(meant_s + self._timeout_s - started_s), self._seats:
                sent_s = self.now()
                outcome, answers = await self._post_all(job)
        except TimeoutError:
            pass
        self._sent.append(Sent(number, meant_s, started_s, sent_s, self.now(), outcome, answers))

    async def _post_all(self, job: Job) -> tuple[Outcome, tuple[bytes, ...]]:
        if len(job.calls) == 1:
            found = [await self._post(*job.calls[0])]
        else:
            found = await asyncio.gather(*(self._post(path, body) for path, body in job.calls))
        statuses = [status for status, _ in found]
        if all(status == 200 for status in statuses):
            return "answered", tuple(body for _, body in found)
        is_refused = all(status == 200 or status in _REFUSALS for status in statuses)
        return ("refused" if is_refused else "failed"), ()

    async def _post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and body; status 0 where the connection broke."""
        try:
            async with self.session.post(self._url + path, data=body) as response:
                return response.status, await response.read()
        except (aiohttp.ClientError, OSError):
            return 0, b""


def read_grades(peer: Peer, sent: Sent, job: Job) -> list[float]:
    """The expected grade of each of the job's notes; NaN where there is none, for whatever reason."""
    nothing = [math.nan] * job.pairs
    if sent.outcome != "answered":
        return nothing
    try:
        grades = peer.grades([json.loads(answer) for answer in sent.answers])
    except (
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        RuntimeError,
    ):  # no answer of the shape that it should have
        return nothing
    return grades if len(grades) == job.pairs else nothing


def count_scored(peer: Peer, drive: Drive, jobs: Sequence[Job]) -> list[int]:
    """Pairs that were scored, for each of `drive.sent`: an answer of 200 may leave some out."""
    return [
        sum(not math.isnan(grade) for grade in read_grades(peer, each, jobs[each.job])) for each in drive.sent
    ]
