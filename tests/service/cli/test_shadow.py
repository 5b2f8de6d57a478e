"""The `notegrade shadow` command formats recorded answers."""

from service.cli.shadow import describe_shadow
from service.contract.comparison import Comparison, Graded, RatioMean


def found(requests: int = 12) -> dict[str, object]:
    comparison, cost = Comparison(4), RatioMean()
    for _ in range(requests):
        comparison.add([Graded(1, 0.3), Graded(3, 0.9)], [Graded(2, 0.5), Graded(3, 0.9)])
        cost.add(20.0, 2)
    return {
        "served": {"name": "old", "fingerprint": "sha256:1"},
        "shadow": {"name": "new", "fingerprint": "sha256:2", "grading_version": "sha256:3"},
        "since": 0.0,
        "rate": 0.05,
        "mirrored": {"compared": requests, "failed": 1, "dropped": 1234},
        "comparison": comparison.to_json(),
        "engine_ms_per_pair": {"served": cost.to_json(), "shadow": RatioMean().to_json()},
    }


def test_the_report_is_readable() -> None:
    lines = describe_shadow(found()).splitlines()
    assert lines[:3] == [
        "served  old sha256:1",
        "shadow  new sha256:2, grading version sha256:3, since 1970-01-01 00:00:00Z",
        "5.0% of requests are mirrored: 12 compared, 1 failed, 1,234 dropped",
    ]
    assert "same grade        50.0 % [50.0, 50.0]" in lines
    assert lines[-2:] == [
        "engine ms a pair  served 10.0 [10.0, 10.0]",
        "engine ms a pair  shadow not known yet",
    ]


def test_readings_are_reported_apart_where_vectors_were_read() -> None:
    report = found()
    of_text = {"served": "text", "shadow": "text", "comparison": report["comparison"]}
    plain = describe_shadow({**report, "by_reading": [of_text]})
    assert plain == describe_shadow(report)
    lines = describe_shadow(
        {**report, "by_reading": [of_text, {**of_text, "shadow": "vectors"}]}
    ).splitlines()
    assert [line for line in lines if line.startswith("Notes read")] == [
        "Notes read as text here and as text by the shadow:",
        "Notes read as text here and as vectors by the shadow:",
    ]
    assert lines.count("same grade        50.0 % [50.0, 50.0]") == 3


def test_a_shadow_that_has_not_answered_is_reported() -> None:
    silent = {**found(0), "shadow": None, "since": None}
    assert describe_shadow(silent).splitlines()[-1] == "The shadow has not answered yet."
