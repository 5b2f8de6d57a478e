"""A service under attack: it must not fail, hang, or leak another caller's texts.

Another caller sends requests all the time. Their texts contain a canary, which only their own answers may contain, and no log line.
"""

import itertools
import logging
import math
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import hypothesis

from service.contract.checkpoint import Checkpoint
from service.engines.base import TraceChunk
from service.engines.fake_engine import FakeEngine
from service.http.auth import hash_key
from tests.checkpoints import engine_model
from tests.served import Served, served
from tests.waiting import wait_until

ADMIN = {"Authorization": "Bearer admin-key"}
CANARY = "canary-7f3a"
MODE = "/admin/explanation-mode"
WHOLE: dict[str, dict[str, Any]] = {
    "/score": {
        "request_id": "r-1",
        "query": "quiet cafes",
        "notes": [{"id": "n1", "title": "Cafes", "body": "A quiet cafe."}, {"id": "n2", "body": "Surf."}],
        "deadline_ms": 5000,
        "priority": "online",
        "explain": True,
        "criteria": None,
    },
    "/rerank": {
        "query": "q",
        "documents": ["a", {"text": "b", "url": None}],
        "top_n": 1,
        "return_documents": True,
        "max_tokens_per_doc": 3,
        "deadline_ms": 5000,
        "priority": 0,
        "criteria": None,
    },
    "/v1/score": {
        "text_1": ["q", "r"],
        "text_2": ["a", "b"],
        "max_tokens_per_doc": 3,
        "deadline_ms": 5000,
        "priority": "batch",
        "criteria": None,
    },
    "/explain": {"query": "q", "note": {"title": None, "body": "b"}, "criteria": None, "deadline_ms": 5000},
    MODE: {"mode": "sample", "ttl_s": 60, "reason": "why", "rate": 0.5},
}


class QuotingEngine(FakeEngine):
    """Generates traces that quote the prompt, as a model may, so that a trace sent to the wrong caller is detected."""

    async def write(
        self, prompt: tuple[int, ...], max_tokens: int, priority: int, grammar: str | None = None
    ) -> AsyncGenerator[TraceChunk]:
        self.trace = prompt
        async with aclosing(super().write(prompt, max_tokens, priority, grammar)) as writing:
            async for written in writing:
                yield written


class LogReader(logging.Handler):
    """Keeps the forbidden log lines: errors, and lines with the other caller's text in any field."""

    def __init__(self) -> None:
        super().__init__()
        self.lines = 0
        self.bad: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = f"{self.format(record)} {vars(record)}"
        self.lines += 1
        if CANARY in line or record.levelno >= logging.ERROR:
            self.bad.append(line)


@contextmanager
def log_read() -> Iterator[LogReader]:
    """Read all that the service and its server log, down to DEBUG; other handlers get nothing meanwhile."""
    reader = LogReader()
    loggers = [logging.getLogger(name) for name in ("service", "uvicorn.error", "asyncio")]
    before = [(each.level, each.propagate) for each in loggers]
    for each in loggers:
        each.addHandler(reader)
        each.setLevel(logging.DEBUG)
        each.propagate = False
    try:
        yield reader
    finally:
        for each, (level, propagate) in zip(loggers, before, strict=True):
            each.removeHandler(reader)
            each.setLevel(level)
            each.propagate = propagate


class OtherCaller:
    """Another caller, which sends requests of all kinds from a thread until `stop`; `fault` is the first wrong answer."""

    def __init__(self, url: str) -> None:
        self.answered = 0
        self.explained = 0
        self.fault: BaseException | None = None
        self._url = url
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _work(self) -> None:
        headers = {"Authorization": "Bearer bob-key"}
        kinds = itertools.cycle([self._score, self._be_refused, self._rerank, self._explain])
        try:
            with httpx.Client(base_url=self._url, headers=headers, timeout=20) as client:
                for turn, kind in enumerate(kinds):
                    if self._stopping.wait(0.05):
                        return
                    kind(client, f"{CANARY} {turn}")  # always new, so that nothing is cached
                    self.answered += 1
        except BaseException as error:
            self.fault = error

    def _score(self, client: httpx.Client, text: str) -> None:
        notes = [{"id": CANARY, "title": text, "body": text}]
        answer = client.post("/score", json={"query": text, "notes": notes, "explain": True})
        assert answer.is_success, answer.text
        [result] = answer.json()["results"]
        assert (result["id"], result["outcome"]) == (CANARY, "scored")
        self._look_at(result["explanation"])

    def _be_refused(self, client: httpx.Client, text: str) -> None:
        answer = client.post("/score", json={"query": text, "notes": []})
        assert answer.status_code == 422, answer.text

    def _rerank(self, client: httpx.Client, text: str) -> None:
        body = {"query": text, "documents": [text], "return_documents": True}
        answer = client.post("/rerank", json=body)
        assert answer.is_success, answer.text
        assert answer.json()["results"][0]["document"]["text"] == text

    def _explain(self, client: httpx.Client, text: str) -> None:
        answer = client.post("/explain", json={"query": text, "note": {"title": text, "body": text}})
        if answer.is_success:
            assert "event: explanation" in answer.text
        else:  # the mode is off, or was turned off while the pair was scored
            kind = answer.json()["type"].removeprefix("urn:notegrade:problem:")
            assert kind in ("explanations-off", "explanation-dropped"), answer.text

    def _look_at(self, explanation: Mapping[str, Any]) -> None:
        if explanation["outcome"] == "made":
            assert CANARY in explanation["text"]  # otherwise no leak could be detected
            self.explained += 1


@dataclass
class Attacked:
    """A service in one explanation mode, with another caller, a reader of the log, and the attacker's client."""

    service: Served
    mode: str
    client: httpx.Client
    other_caller: OtherCaller
    log: LogReader
    # The share of its cases that `run` generates.
    share: float = 1.0
    answered: int = field(default=0, init=False)

    def send(self, path: str, body: bytes, **headers: str) -> httpx.Response:
        """Send the body with the path's method, and check the answer."""
        method = "PUT" if path.startswith("/admin") else "POST"
        named = {"If-Match": '"999"', **headers}
        response = self.client.request(method, path, content=body, headers=named)
        self.check(response.status_code, response.headers, response.text)
        if response.is_error:
            check_problem(response)
        return response

    def check(self, status: int, headers: Mapping[str, str], text: str) -> None:
        """Count an answer; it must not be a server error, nor contain the other caller's text."""
        self.answered += 1
        assert status < 500, text
        assert CANARY not in text + str(headers), f"another caller's text in the answer: {text}"

    def run(self, check: Callable[..., None], cases: int, at_least: int | None = None, **values: Any) -> None:
        """Call `check` with this many generated values; as many requests must be answered, or `at_least`."""
        before = self.answered
        cases, at_least = math.ceil(cases * self.share), math.ceil((at_least or cases) * self.share)
        limits = hypothesis.settings(
            max_examples=cases,
            suppress_health_check=list(hypothesis.HealthCheck),
            database=None,
            deadline=None,
        )
        # The same values in every run, others for each share: the shares of two services add up.
        hypothesis.seed(f"{self.mode} {self.share}")(limits(hypothesis.given(**values)(check)))()
        assert self.answered - before >= at_least

    def set_mode(self) -> None:
        """Restore the mode of this service, whatever a test flipped it to."""
        now = self.client.get(MODE)
        if now.json()["mode"] != self.mode:
            body = {"mode": self.mode, "reason": "tests", "ttl_s": None if self.mode == "off" else 3600}
            flipped = self.client.put(MODE, json=body, headers={"If-Match": now.headers["etag"]})
            assert flipped.json()["mode"] == self.mode

    @contextmanager
    def meanwhile(self) -> Iterator[None]:
        """Check around a test that the other caller is served during it, and that none of its texts are logged."""
        self.set_mode()
        before = self.other_caller.answered
        yield
        wait_until(lambda: self.other_caller.answered > before or self.other_caller.fault is not None)
        if self.other_caller.fault is not None:
            raise AssertionError("the other caller was answered wrongly") from self.other_caller.fault
        assert self.log.lines, "nothing was logged: the log is not read"
        assert self.log.bad == [], self.log.bad[:3]


@contextmanager
def attacked(checkpoint: Checkpoint, mode: str) -> Iterator[Attacked]:
    """Serve in that mode, with limits that only a fault can reach."""
    settings: dict[str, Any] = {
        "keys": f"admin:{hash_key('admin-key')}:ann,score:{hash_key('bob-key')}:bob",
        "max_notes": 20,
        "guard_p99_ms": 600_000,
        "explanation_queue": 1000,
        "explanation_tokens_per_s": 1e6,
        "explanation_max_tokens": 40,
    }
    engine = QuotingEngine(engine_model(checkpoint))
    with ExitStack() as stack:
        log = stack.enter_context(log_read())
        service = stack.enter_context(served(checkpoint, engine=engine, **settings))
        client = stack.enter_context(httpx.Client(base_url=service.url, headers=ADMIN, timeout=20))
        other_caller = OtherCaller(service.url)
        stack.callback(other_caller.stop)
        yield Attacked(service, mode, client, other_caller, log)


def check_problem(response: httpx.Response) -> None:
    """Check that a refusal is a problem as the contract defines it."""
    problem = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["type"].startswith("urn:notegrade:problem:")
    assert problem["detail"]
