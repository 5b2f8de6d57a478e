"""The `notegrade experiment` command's side of Prometheus, against answers as it gives them. Against a real one: tests/deploy."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from rich.console import Console

from service.errors import CommandError
from service.experiments.command import Report, judge_experiment, parse_period
from service.experiments.counts import COUNTED, Period, Prometheus

CONTROL, TREATMENT, OTHER = (f"sha256:{start}{'0' * 60}" for start in ("aaaa", "abbb", "cccc"))
PERIOD = Period(1_000_000.0, 1_007_200.0, 300.0)
# By kind, label and arm: what one window has of it.
USUAL: dict[str, dict[str, float]] = {
    "requests": {"200": 990, "500": 10},
    "seconds": {"200": 99},
    "buckets": {"0.1": 495, "1.0": 980, "+Inf": 990},
    "outcomes": {"scored": 1000, "failed": 10},
    "sources": {"engine": 600, "local": 400},
    "grades": {"0": 500, "3": 500},
}
BROKEN: dict[str, dict[str, float]] = {**USUAL, "requests": {"200": 900, "500": 100}}


def success(result: list[Any]) -> httpx.Response:
    return httpx.Response(200, json={"status": "success", "data": {"result": result}})


def series(fingerprint: str, label: str, value: str, count: float, windows: int) -> dict[str, Any]:
    ends = [PERIOD.until - 300.0 * ago for ago in range(windows)]
    # Windows are never all alike.
    values = [[end, str(count * (1 + 0.01 * (place % 3)))] for place, end in enumerate(ends)]
    return {"metric": {"fingerprint": fingerprint, label: value}, "values": values}


def prometheus(
    arms: dict[str, dict[str, dict[str, float]]], windows: int = 24, where: str = "", seen: Any = None
) -> Prometheus:
    def answer(request: httpx.Request) -> httpx.Response:
        query = request.url.params["query"]
        if seen is not None:
            seen.append(request)
        if request.url.path.endswith("/query"):
            return success([{"metric": {"fingerprint": each}, "value": [0, "1"]} for each in arms])
        [(kind, label)] = [
            (kind, each[2]) for kind, each in COUNTED.items() if f"increase({each[0]}" in query
        ]
        return success(
            [
                series(fingerprint, label, value, count, windows)
                for fingerprint, has in arms.items()
                for value, count in has.get(kind, {}).items()
            ]
        )

    return Prometheus("http://prometheus/behind", where, httpx.MockTransport(answer))


def answering(answer: Callable[[httpx.Request], httpx.Response]) -> Prometheus:
    return Prometheus("http://someone:secret@prometheus:9090", transport=httpx.MockTransport(answer))


def shown(report: Report) -> str:
    console = Console(width=160)
    with console.capture() as captured:
        console.print(report.to_table())
    return captured.get()


def test_a_treatment_that_fails_more_is_worse_by_that_and_nothing_else() -> None:
    report = judge_experiment(
        prometheus({CONTROL: USUAL, TREATMENT: BROKEN, OTHER: USUAL}), "aa", "sha256:ab", PERIOD
    )
    told = {each.name: each.verdict for each in report.judgements}
    assert told.pop("errors (5xx)") == "worse"
    # Its answers are as many seconds over fewer requests.
    assert told.pop("mean answer time") == "worse"
    assert set(told.values()) == {"no difference seen"}
    assert report.is_worse
    assert not judge_experiment(
        prometheus({CONTROL: BROKEN, TREATMENT: USUAL}), CONTROL, TREATMENT, PERIOD
    ).is_worse


def test_every_window_is_asked_for_and_none_twice() -> None:
    seen: list[httpx.Request] = []
    source = prometheus({CONTROL: USUAL, TREATMENT: USUAL}, where='namespace="shop"', seen=seen)
    judge_experiment(source, "aa", "ab", PERIOD)
    assert seen[0].url.path == "/behind/api/v1/query"
    for each in seen[1:]:
        asked = each.url.params
        assert (asked["start"], asked["end"], asked["step"]) == ("1000300.0", "1007200.0", "300.0")
        assert "[300000ms]" in asked["query"]
    assert all('namespace="shop"' in each.url.params["query"] for each in seen)
    assert len(seen) == 1 + len(COUNTED)


def test_it_is_told_to_a_person_and_to_a_program() -> None:
    report = judge_experiment(prometheus({CONTROL: USUAL, TREATMENT: BROKEN}), "aa", "ab", PERIOD)
    table = shown(report)
    assert f"treatment {TREATMENT}: 24,240, 50.0% of all" in table
    assert "24 windows of 300 s" in table
    rows = {line.split("│")[1].strip(): line for line in table.splitlines() if line.startswith("│")}
    cells = [cell.strip() for cell in rows["errors (5xx), %"].split("│")[2:-1]]
    assert cells == ["1.00", "10.00", "+9.00", "[+9.00, +9.00]", "worse"]
    assert "1.500" in rows["mean grade"]
    assert "100.0" in rows["p50 answer time, ms (estimate)"]
    written = json.loads(json.dumps(report.to_json()))
    [errors] = [each for each in written["measures"] if each["name"] == "errors (5xx)"]
    assert errors["difference"] == pytest.approx(0.09)
    assert (errors["unit"], errors["verdict"]) == ("share", "worse")
    assert (written["since"], written["windows"]) == ("1970-01-12T13:46:40Z", 24)
    assert written["control"]["requests"] == pytest.approx(24240)


def test_nine_windows_say_what_to_do() -> None:
    short = Period(PERIOD.until - 2700, PERIOD.until, 300)
    report = judge_experiment(prometheus({CONTROL: USUAL, TREATMENT: BROKEN}, windows=9), "aa", "ab", short)
    assert not report.is_worse
    assert "Fewer than 10 windows are not judged" in shown(report)


@pytest.mark.parametrize(
    ("control", "treatment", "message"),
    [
        ("a", "ab", f"control a is the start of several checkpoints: {CONTROL}, {TREATMENT}"),
        (
            "aa",
            "ff",
            "treatment ff is the start of no checkpoint that Prometheus saw in that time: sha256:aaaa",
        ),
        ("aa", "sha256:aaaa", "the same checkpoint"),
        ("aa", "cc", f"treatment {OTHER} has no requests for scores in 24 windows of 300 s"),
    ],
)
def test_arms_that_can_not_be_compared_are_refused(control: str, treatment: str, message: str) -> None:
    source = prometheus({CONTROL: USUAL, TREATMENT: USUAL, OTHER: {"requests": {"404": 5}}})
    with pytest.raises(CommandError, match=message):
        judge_experiment(source, control, treatment, PERIOD)


def test_a_prometheus_that_knows_nothing_is_told_apart() -> None:
    with pytest.raises(CommandError, match="saw in that time: none at all"):
        judge_experiment(prometheus({}), "aa", "ab", PERIOD)


def refuse(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("connection refused", request=request)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (refuse, "Prometheus at http://prometheus:9090 did not answer: connection refused"),
        (lambda request: httpx.Response(502, text="<html>"), "is not Prometheus: HTTP 502"),
        (lambda request: httpx.Response(200, json=[]), r"refused: \[\]"),
        (
            lambda request: httpx.Response(400, json={"status": "error", "error": "exceeded 11,000 points"}),
            "refused: exceeded 11,000 points",
        ),
    ],
)
def test_a_prometheus_that_is_none_or_refuses_is_told(
    answer: Callable[[httpx.Request], httpx.Response], message: str
) -> None:
    with pytest.raises(CommandError, match=message) as caught:
        judge_experiment(answering(answer), "aa", "ab", PERIOD)
    assert "secret" not in str(caught.value)


def test_a_period_is_read_as_it_is_written() -> None:
    now = 1_000_000.0
    assert parse_period("24h", None, None, now) == Period(913_600.0, now, 3600.0)
    assert parse_period("30m", "20m", "90s", now) == Period(998_200.0, 998_800.0, 90.0)
    assert parse_period("10m", None, None, now).windows == 10, "a minute at least"
    exact = parse_period("1970-01-11T13:46:40", "1970-01-12T14:46:40+01:00", "1d", now)
    assert exact == Period(913_600.0, now, 86_400.0)


@pytest.mark.parametrize(
    ("since", "until", "window", "message"),
    [
        ("yesterday", None, None, "--since is a time such as"),
        ("1h", "soon", None, "--until is a time such as"),
        ("1h", "2h", None, "is not before"),
        ("1h", None, "5", "--window is a time such as"),
        ("1h", None, "2h", "--window 7200 s is not within the 3600 s"),
        ("1h", None, "0s", "--window 0 s is not within"),
        ("30s", None, None, "--window 60 s is not within the 30 s"),
    ],
)
def test_other_periods_are_refused(since: str, until: str | None, window: str | None, message: str) -> None:
    with pytest.raises(CommandError, match=message):
        parse_period(since, until, window, 1_000_000.0)
