"""The `notegrade experiment` command works on answers in Prometheus's format. tests/deploy has a real Prometheus."""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from rich.console import Console

from service.errors import CommandError
from service.experiments.command import Report, judge_experiment, parse_period
from service.experiments.prometheus import COUNTED, Period, Prometheus, Version

HASHES = [f"sha256:{start}{'0' * 60}" for start in ("aaaa", "abbb", "cccc", "dddd", "deee")]
CONTROL, TREATMENT, OTHER = (Version(fingerprint, HASHES[3]) for fingerprint in HASHES[:3])
# The control's model with another calibration.
REFITTED = Version(CONTROL.fingerprint, HASHES[4])
PERIOD = Period(1_000_000.0, 1_007_200.0, 300.0)
# The counts of one window, by kind and label.
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


def labels(version: Version) -> dict[str, str]:
    return {name: value for name, value in version._asdict().items() if value}


def series(version: Version, label: str, value: str, count: float, windows: int) -> dict[str, Any]:
    ends = [PERIOD.until - 300.0 * ago for ago in range(windows)]
    # Real windows differ from each other.
    values = [[end, str(count * (1 + 0.01 * (place % 3)))] for place, end in enumerate(ends)]
    return {"metric": {**labels(version), label: value}, "values": values}


def prometheus(
    arms: dict[Version, dict[str, dict[str, float]]], windows: int = 24, where: str = "", seen: Any = None
) -> Prometheus:
    def answer(request: httpx.Request) -> httpx.Response:
        query = request.url.params["query"]
        if seen is not None:
            seen.append(request)
        if request.url.path.endswith("/query"):
            return success([{"metric": labels(each), "value": [0, "1"]} for each in arms])
        [(kind, label)] = [
            (kind, each[2]) for kind, each in COUNTED.items() if f"increase({each[0]}" in query
        ]
        return success(
            [
                series(version, label, value, count, windows)
                for version, has in arms.items()
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


def test_a_treatment_with_more_errors_is_worse_by_that_only() -> None:
    report = judge_experiment(
        prometheus({CONTROL: USUAL, TREATMENT: BROKEN, OTHER: USUAL}), "aa", "sha256:ab", PERIOD
    )
    verdicts = {each.name: each.verdict for each in report.judgements}
    assert verdicts.pop("errors (5xx)") == "worse"
    # The same number of seconds over fewer answers.
    assert verdicts.pop("mean answer time") == "worse"
    assert set(verdicts.values()) == {"no difference seen"}
    assert report.exit_code == 1
    better = prometheus({CONTROL: BROKEN, TREATMENT: USUAL})
    assert judge_experiment(better, CONTROL.fingerprint, TREATMENT.fingerprint, PERIOD).exit_code == 0


@pytest.mark.parametrize(
    ("control", "treatment"),
    [("aa/dd", "aa/de"), (str(CONTROL), str(REFITTED)), ("/sha256:dd", "/sha256:de")],
)
def test_arms_may_differ_in_their_grading_version_only(control: str, treatment: str) -> None:
    source = prometheus({CONTROL: USUAL, REFITTED: {**USUAL, "grades": {"0": 100, "3": 900}}})
    report = judge_experiment(source, control, treatment, PERIOD)
    assert (report.control.version, report.treatment.version) == (CONTROL, REFITTED)
    verdicts = {each.name: each.verdict for each in report.judgements}
    assert (verdicts["mean grade"], verdicts["errors (5xx)"]) == ("higher", "no difference seen")
    assert report.to_json()["treatment"]["grading_version"] == REFITTED.grading_version
    with pytest.raises(
        CommandError, match=f"{REFITTED}; to choose one, add a slash and the start of its grading version"
    ):
        judge_experiment(source, "aa", treatment, PERIOD)


def test_a_service_that_states_no_grading_version_is_named_by_its_fingerprint() -> None:
    older = Version(OTHER.fingerprint, "")
    report = judge_experiment(prometheus({older: USUAL, TREATMENT: USUAL}), "cc", "ab", PERIOD)
    assert report.control.version == older
    assert f"control   {OTHER.fingerprint} " in shown(report)


def test_every_window_is_queried_once() -> None:
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


def test_the_report_is_a_table_and_json() -> None:
    report = judge_experiment(prometheus({CONTROL: USUAL, TREATMENT: BROKEN}), "aa", "ab", PERIOD)
    table = shown(report)
    assert f"treatment {TREATMENT} " in table
    assert "24,240 and 24,240 scoring requests, 50.0% on the treatment" in table
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
    assert written["control"]["fingerprint"] == CONTROL.fingerprint
    assert written["control"]["requests"] == pytest.approx(24240)


def test_the_caption_of_nine_windows_gives_advice() -> None:
    short = Period(PERIOD.until - 2700, PERIOD.until, 300)
    report = judge_experiment(prometheus({CONTROL: USUAL, TREATMENT: BROKEN}, windows=9), "aa", "ab", short)
    assert report.exit_code == 2
    assert "Fewer than 10 windows are not judged" in " ".join(shown(report).split())


@pytest.mark.parametrize(
    ("control", "treatment", "message"),
    [
        ("a", "ab", f"control a matches several checkpoints: {CONTROL}, {TREATMENT}"),
        ("aa", "ff", "treatment ff matches no checkpoint that Prometheus saw in that time: sha256:aaaa"),
        ("aa", "sha256:aaaa", "the same checkpoint"),
        ("ab", "ab/de", f"treatment ab/de matches no checkpoint .*: {CONTROL}, {TREATMENT}"),
        ("aa", "cc", f"treatment {OTHER} has no scoring requests in 24 windows of 300 s"),
    ],
)
def test_arms_that_cannot_be_compared_are_refused(control: str, treatment: str, message: str) -> None:
    source = prometheus({CONTROL: USUAL, TREATMENT: USUAL, OTHER: {"requests": {"404": 5}}})
    with pytest.raises(CommandError, match=message):
        judge_experiment(source, control, treatment, PERIOD)


def test_a_prometheus_without_our_metrics_is_refused() -> None:
    with pytest.raises(CommandError, match="saw in that time: none"):
        judge_experiment(prometheus({}), "aa", "ab", PERIOD)


def refuse(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("connection refused", request=request)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (refuse, "Prometheus at http://prometheus:9090 did not answer: connection refused"),
        (lambda request: httpx.Response(502, text="<html>"), "is not Prometheus: it answered HTTP 502"),
        (lambda request: httpx.Response(200, json=[]), r"refused the query: \[\]"),
        (
            lambda request: httpx.Response(400, json={"status": "error", "error": "exceeded 11,000 points"}),
            "refused the query: exceeded 11,000 points",
        ),
    ],
)
def test_a_prometheus_that_does_not_answer_or_refuses_is_named(
    answer: Callable[[httpx.Request], httpx.Response], message: str
) -> None:
    with pytest.raises(CommandError, match=message) as caught:
        judge_experiment(answering(answer), "aa", "ab", PERIOD)
    assert "secret" not in str(caught.value)


def test_periods_are_parsed() -> None:
    now = 1_000_000.0
    assert parse_period("24h", None, None, now) == Period(913_600.0, now, 3600.0)
    assert parse_period("30m", "20m", "90s", now) == Period(998_200.0, 998_800.0, 90.0)
    assert parse_period("10m", None, None, now).windows == 10, "a window is at least a minute"
    exact = parse_period("1970-01-11T13:46:40", "1970-01-12T14:46:40+01:00", "1d", now)
    assert exact == Period(913_600.0, now, 86_400.0)


@pytest.mark.parametrize(
    ("since", "until", "window", "message"),
    [
        ("yesterday", None, None, "--since must be a duration such as"),
        ("1h", "soon", None, "--until must be a duration such as"),
        ("1h", "2h", None, "is not before"),
        ("1h", None, "5", "--window must be a duration such as"),
        ("1h", None, "2h", "--window 7200 s does not fit into the 3600 s"),
        ("1h", None, "0s", "--window 0 s does not fit into"),
        ("30s", None, None, "--window 60 s does not fit into the 30 s"),
    ],
)
def test_bad_periods_are_refused(since: str, until: str | None, window: str | None, message: str) -> None:
    with pytest.raises(CommandError, match=message):
        parse_period(since, until, window, 1_000_000.0)


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_service_imports_neither_the_statistics_nor_scipy() -> None:
    code = "import sys, service.__main__; print(*sys.modules)"
    loaded = run_python(code).split()
    assert "service.app" in loaded
    assert [name for name in loaded if name.startswith(("service.experiments", "scipy"))] == []


def test_without_scipy_the_command_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['scipy'] = None\n"
        "from service.errors import CommandError\n"
        "try: import service.experiments.command\n"
        "except CommandError as error: print(error)\n"
    )
    assert run_python(code) == (
        "`notegrade experiment` needs scipy: install the extra `experiments` "
        "(pip install 'notegrade[experiments]', or `make setup-train` in a clone)\n"
    )
