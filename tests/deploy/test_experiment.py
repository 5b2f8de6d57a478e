"""`notegrade experiment` compares two services behind a real HAProxy, scraped by a real Prometheus; promtool tests its queries."""

import json
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from service.__main__ import app
from service.engines.base import EngineAnswer, EnginePrompt
from service.engines.fake_engine import FakeEngine
from service.errors import CommandError, EngineRequestError
from service.experiments.prometheus import arms_in, increase_in
from tests.checkpoints import engine_model, load_tiny
from tests.deploy.haproxy_rig import EXPERIMENT, Router, routed
from tests.deploy.prometheus_rig import Prometheus, prometheus, query_case, run_query_cases
from tests.served import Served, served
from tests.waiting import wait_until

# Windows of 4 scrapes each; the command needs 10 of them.
WINDOW_S, WINDOWS = 2, 12
QUERY = "quiet cafes"
# How the arms' checkpoints differ. Different limits change the fingerprint and not the prompts, so all fake engines give the same
# scores. The third one, which the router does not know, is the control with a decision: it gives every note the highest grade.
CHANGES: Mapping[str, dict[str, Any]] = {
    "control": {},
    "treatment": {"limits": {"max_query_tokens": 63, "max_note_tokens": 48}},
    "decided": {"decisions": [{"criteria": "general-1", "utilities": [[0, 0, 0, 1]] * 4}]},
}


class Failing(FakeEngine):
    """Fails every pair while `fails`."""

    fails = False

    async def score(self, prompt: EnginePrompt, priority: int) -> EngineAnswer:
        if self.fails:
            raise EngineRequestError("the test makes it fail")
        return await super().score(prompt, priority)


@dataclass
class Experiment:
    """Holds the services with a checkpoint each, and for both of the router's a user whom it sends there."""

    router: Router
    prometheus: Prometheus
    arms: Mapping[str, Served]
    failing: Failing
    users: Mapping[str, str]
    notes: list[tuple[str, str]]
    period: tuple[str, ...] = ()

    def ask(self, number: int) -> None:
        """Send the same request to all arms, in alternating order. A third of the treatment's requests fail."""
        # At random: every third request would be in step with the scrapes.
        self.failing.fails = random.Random(number).random() < 1 / 3
        notes = self.notes[number % len(self.notes)]
        body = {"query": QUERY, "notes": [{"id": body, "body": body} for body in notes]}
        for arm in sorted(self.users, reverse=number % 2 == 0):
            answer = self.router.client.post("/score", json=body, headers=as_user(self.users[arm]))
            assert answer.headers["x-experiment-arm"] == arm
        httpx.post(f"{self.arms['decided'].url}/score", json=body).raise_for_status()

    def judge(self, control: str, treatment: str, *more: str) -> tuple[int, str]:
        """Run the command; return its exit code and output. Raises the command's error."""
        arms = ["--control", self.name(control)[:84], "--treatment", self.name(treatment)]
        command = ["experiment", "--prometheus", self.prometheus.url, *arms, *more]
        result = CliRunner().invoke(app, command, env={"COLUMNS": "120"})
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout

    def name(self, arm: str) -> str:
        manifest = self.arms[arm].stack.checkpoint.manifest
        return f"{manifest.fingerprint}/{manifest.grading_version}"

    def verdicts(self, control: str, treatment: str) -> dict[str, dict[str, Any]]:
        _, written = self.judge(control, treatment, *self.period, *WINDOW, "--json")
        return {each["name"]: each for each in json.loads(written)["measures"]}


WINDOW = ("--window", f"{WINDOW_S}s")


def as_user(user: str) -> dict[str, str]:
    return {"X-Experiment-Unit": user}


def by_grade(router: Router) -> list[tuple[str, str]]:
    """Pair notes of the lowest grade with notes of the highest, so that every request adds the same grades."""
    notes = [{"id": f"Note {number}.", "body": f"Note {number}."} for number in range(40)]
    results = router.client.post("/score", json={"query": QUERY, "notes": notes}).json()["results"]
    low, high = ([each["id"] for each in results if each["grade"] == grade] for grade in (0, 3))
    return list(zip(low, high, strict=False))


def start(folder: Path, services: ExitStack) -> Experiment:
    """Start both arms, the router and Prometheus, and wait until both arms answer."""
    arms: dict[str, Served] = {}
    engines: dict[str, Failing] = {}
    for name, changes in CHANGES.items():
        checkpoint = load_tiny(folder / name, name=name, **changes)
        engines[name] = Failing(engine_model(checkpoint))
        # Almost no cache: it would hold the answers to requests that failed once and succeeded later.
        arms[name] = services.enter_context(served(checkpoint, engine=engines[name], local_cache_pairs=1))
    addresses = {name: arm.url.removeprefix("http://") for name, arm in arms.items()}
    environment = {f"{name.upper()}_1": address for name, address in addresses.items()}
    environment["TREATMENT_PERCENT"] = "50"
    router = services.enter_context(routed(folder, EXPERIMENT, environment))
    scraping = services.enter_context(prometheus(folder, *addresses.values()))
    router.wait_for()
    users = {}
    for user in (f"user-{number}" for number in range(20)):
        users[router.score(QUERY, headers=as_user(user)).headers["x-experiment-arm"]] = user
    assert users.keys() == {"control", "treatment"}
    notes = by_grade(router)
    assert len(notes) > 1, "a single request would always be cached"
    return Experiment(router, scraping, arms, engines["treatment"], users, notes)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Experiment]:
    """Return the experiment after all its traffic."""
    with ExitStack() as services:
        running = start(tmp_path_factory.mktemp("experiment"), services)
        running.prometheus.wait_for_scrapes()
        # One second more at both ends, so that every window has traffic.
        begins, numbers = time.time() + 1, iter(range(1_000_000))
        ends = begins + WINDOW_S * WINDOWS

        def is_over() -> bool:
            running.ask(next(numbers))
            return time.time() > ends + 1

        wait_until(is_over, within_s=120)
        running.period = ("--since", as_written(begins), "--until", as_written(ends))
        yield running


def as_written(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()


def test_an_arm_with_errors_is_worse_by_errors_only(experiment: Experiment) -> None:
    code, table = experiment.judge("control", "treatment", *experiment.period, *WINDOW)
    print(table)
    assert code == 1
    found = experiment.verdicts("control", "treatment")
    for name in ("errors (5xx)", "pairs not scored"):
        each = found.pop(name)
        assert (each["control"], each["verdict"]) == (0, "worse")
        assert each["difference"] == pytest.approx(1 / 3, abs=0.1)
    # Latency depends on the machine. Failed requests between two equal ones leave a pair or two in the cache.
    assert found["pairs from a cache"]["verdict"] in {"no difference seen", "too little data"}
    for name in ("mean grade", *(f"grade {grade}" for grade in range(4))):
        assert found[name]["verdict"] == "no difference seen", found[name]


def test_arms_that_differ_in_decisions_only_are_judged_by_their_grades(experiment: Experiment) -> None:
    found = experiment.verdicts("control", "decided")
    assert found["mean grade"]["verdict"] == found["grade 3"]["verdict"] == "higher"
    assert found["mean grade"]["control"] == pytest.approx(1.5, abs=0.1)
    assert found["mean grade"]["treatment"] == pytest.approx(3)
    assert found["errors (5xx)"]["verdict"] == found["pairs not scored"]["verdict"] == "no difference seen"


def test_with_the_arms_swapped_the_treatment_is_better(experiment: Experiment) -> None:
    found = experiment.verdicts("treatment", "control")
    assert found["errors (5xx)"]["verdict"] == found["pairs not scored"]["verdict"] == "better"


def test_too_few_windows_are_not_judged(experiment: Experiment) -> None:
    code, table = experiment.judge("control", "treatment", *experiment.period, "--window", "4s")
    assert code == 2
    assert "worse" not in table
    assert "Fewer than 10 windows are not judged" in " ".join(table.split())


@pytest.mark.parametrize(
    ("arms", "more", "message"),
    [
        (("control", "control"), (), "the same checkpoint"),
        (("control", "treatment"), ("--where", 'job="another"'), "saw in that time: none"),
        (("control", "treatment"), ("--since", "2h", "--until", "1h"), "saw in that time: none"),
        (("control", "treatment"), ("--window", "300ms"), "--window must be a duration"),
        (
            ("control", "treatment"),
            ("--since", "20s", "--window", "0.4s"),
            "a window shorter than two scrape intervals",
        ),
        (("control", "treatment"), ("--where", "job="), "refused the query: .*parse error"),
    ],
)
def test_experiments_that_cannot_be_judged_are_refused(
    experiment: Experiment, arms: tuple[str, str], more: tuple[str, ...], message: str
) -> None:
    with pytest.raises(CommandError, match=message):
        experiment.judge(*arms, *more)


# The start of the labels of two replicas' series.
OLD, NEW = ('{job="notegrade", instance="old"', '{job="notegrade", instance="new"')


def test_counts_are_of_one_window_and_one_arm(tmp_path: Path) -> None:
    build = "notegrade_build_info"
    increase = increase_in("notegrade_grade_total{}", f"{build}{{}}", "300000ms")
    arms = arms_in(f"{build}{{}}", "300000ms")
    there = {f'{build}{OLD}, fingerprint="a"}}': "1x40"}
    run_query_cases(
        tmp_path,
        # 10 per scrape over 20 scrapes, with a restart in the window.
        query_case(increase, there | {f"notegrade_grade_total{OLD}}}": "0+10x30 10+10x9"}, (f"{OLD}}}", 200)),
        # A known replica's first count in a new series.
        query_case(
            increase,
            there | {f'notegrade_grade_total{OLD}, grade="3"}}': "_x25 1x14"},
            (f'{OLD}, grade="3"}}', 1),
        ),
        # A replica that is new to Prometheus may have counted for a long time.
        query_case(increase, there | {f"notegrade_grade_total{NEW}}}": "_x25 500x14"}, (f"{NEW}}}", 0)),
        # A replica that changed its checkpoint within the window belongs to neither arm.
        query_case(
            arms,
            there
            | {f'{build}{NEW}, fingerprint="a"}}': "1x25", f'{build}{NEW}, fingerprint="b"}}': "_x26 1x14"},
            (f'{OLD}, fingerprint="a"}}', 1),
        ),
        query_case(
            arms,
            {
                f'{build}{OLD}, fingerprint="a", grading_version="c"}}': "1x40",
                f'{build}{NEW}, fingerprint="a", grading_version="c"}}': "1x25",
                f'{build}{NEW}, fingerprint="a", grading_version="d"}}': "_x26 1x14",
            },
            (f'{OLD}, fingerprint="a", grading_version="c"}}', 1),
        ),
        # Nor does another version of the service make another checkpoint.
        query_case(
            arms,
            {
                f'{build}{OLD}, fingerprint="a", version="1"}}': "1x25",
                f'{build}{OLD}, fingerprint="a", version="2"}}': "_x26 1x14",
            },
            (f'{OLD}, fingerprint="a"}}', 1),
        ),
    )
