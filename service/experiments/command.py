"""The `notegrade experiment` command: compares a treatment with its control, from Prometheus's counts of both."""

import re
from collections.abc import Collection
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from rich.table import Table

from service.errors import CommandError
from service.experiments.measures import (
    CONFIDENCE,
    FEWEST_WINDOWS,
    Judgement,
    Unit,
    Windows,
    answer_quantiles,
    judge_all,
    requests,
)
from service.experiments.prometheus import Period, Prometheus, Version

# Few long windows, so that a disturbance of some minutes stays within one. 10 to 30 windows cost little precision (B. Schmeiser,
# "Batch size effects in the analysis of simulation output", Operations Research 30, 1982).
WINDOWS = 24
SHORTEST_WINDOW_S = 60.0
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
# How a unit is shown: the suffix of the row's name, a factor, and the decimals.
_SHOWN: dict[Unit, tuple[str, float, int]] = {
    "share": (", %", 100, 2),
    "seconds": (", ms", 1000, 1),
    "grade": ("", 1, 3),
}
_STYLES = {"better": "green", "worse": "bold red", "higher": "yellow", "lower": "yellow"}


@dataclass(frozen=True, slots=True)
class Arm:
    """One checkpoint: its number of scoring requests, and estimated latency quantiles in seconds."""

    fingerprint: str
    grading_version: str
    requests: float
    answer_seconds: dict[str, float | None]

    @property
    def version(self) -> Version:
        return Version(self.fingerprint, self.grading_version)


@dataclass(frozen=True, slots=True)
class Report:
    """An experiment's verdicts, with the arms and the period that they are based on."""

    control: Arm
    treatment: Arm
    period: Period
    judgements: list[Judgement]

    @property
    def exit_code(self) -> int:
        """Return 1 if the treatment is worse by any measure, 2 if no measure has enough data to be judged, else 0."""
        verdicts = {each.verdict for each in self.judgements}
        return 1 if "worse" in verdicts else 2 if verdicts == {"too little data"} else 0

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-like data. Shares are from 0 to 1, times in seconds; the measures have the table's names."""
        return {
            "control": asdict(self.control),
            "treatment": asdict(self.treatment),
            "since": _utc(self.period.since),
            "until": _utc(self.period.until),
            "window_s": self.period.window_s,
            "windows": self.period.windows,
            "confidence": CONFIDENCE,
            "measures": [asdict(each) for each in self.judgements],
        }

    def to_table(self) -> Table:
        """Format as a table."""
        table = Table(title="\n".join(self._title()), title_justify="left", caption=self._caption())
        table.add_column("measure")
        for heading in ("control", "treatment", "difference", "interval"):
            table.add_column(heading, justify="right")
        table.add_column("verdict")
        for each in self.judgements:
            table.add_row(*_row(each), style=_STYLES.get(each.verdict, ""))
        for name in self.control.answer_seconds:
            ours, theirs = self.control.answer_seconds[name], self.treatment.answer_seconds[name]
            shown = [_number(value, "seconds") for value in (ours, theirs)]
            table.add_row(f"{name} answer time, ms (estimate)", *shown, "", "", "not judged", style="dim")
        return table

    def _title(self) -> list[str]:
        of_all = self.treatment.requests / (self.control.requests + self.treatment.requests)
        return [
            f"control   {self.control.version}",
            f"treatment {self.treatment.version}",
            f"{self.control.requests:,.0f} and {self.treatment.requests:,.0f} scoring requests, {of_all:.1%} on the treatment",
            f"{_utc(self.period.since)} to {_utc(self.period.until)}, {self.period.windows} windows of {self.period.window_s:g} s",
        ]

    def _caption(self) -> str:
        caption = f"The confidence of all intervals together is {CONFIDENCE:.0%} (docs/experiments.md)."
        if self.period.windows < FEWEST_WINDOWS:
            caption += (
                f" Fewer than {FEWEST_WINDOWS} windows are not judged: wait, or choose a shorter --window."
            )
        return caption


def judge_experiment(prometheus: Prometheus, control: str, treatment: str, period: Period) -> Report:
    """Compare two checkpoints, each given by the start of its fingerprint, with or without `sha256:`.

    Where both have the same fingerprint, the start of the grading version follows it after a slash: `3f72/daab`.
    Raises CommandError when Prometheus does not answer, when a start matches no checkpoint or several, when both match the same one, or
    when one has no scoring requests in that time.
    """
    known = prometheus.versions(period)
    ours, theirs = _resolve("control", control, known), _resolve("treatment", treatment, known)
    if ours == theirs:
        raise CommandError(
            f"control and treatment are the same checkpoint, {ours}: a different name or date changes neither a fingerprint nor a grading version"
        )
    read = prometheus.read(period)
    return Report(
        _arm("control", ours, read.get(ours, {}), period),
        _arm("treatment", theirs, read.get(theirs, {}), period),
        period,
        judge_all(read.get(ours, {}), read.get(theirs, {})),
    )


def parse_period(since: str, until: str | None, window: str | None, now: float) -> Period:
    """Parse the period to compare. Raises CommandError.

    Args:
        since, until: how long ago (`90s`, `30m`, `24h`, `7d`) or a time (ISO 8601, UTC by default). `until` defaults to now.
        window: the length of a window; by default a 24th of the period, at least a minute.
        now: seconds since 1970.
    """
    start, end = _parse_instant("--since", since, now), _parse_instant("--until", until or "0s", now)
    if start >= end:
        raise CommandError(f"--since {_utc(start)} is not before {_utc(end)}")
    window_s = _parse_seconds(window) if window else max(SHORTEST_WINDOW_S, (end - start) / WINDOWS)
    if window_s is None:
        raise CommandError(f"--window must be a duration such as 90s, 30m or 2h, not {window}")
    if not 0 < window_s <= end - start:
        raise CommandError(f"--window {window_s:g} s does not fit into the {end - start:g} s to compare")
    return Period(start, end, window_s)


def _parse_instant(option: str, text: str, now: float) -> float:
    ago_s = _parse_seconds(text)
    if ago_s is not None:
        return now - ago_s
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise CommandError(
            f"{option} must be a duration such as 24h or 7d, or a time such as 2026-01-31T12:00, not {text}"
        ) from error
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def _parse_seconds(text: str) -> float | None:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    return float(found[1]) * _UNITS[found[2]] if found else None


def _resolve(arm: str, start: str, known: Collection[Version]) -> Version:
    fingerprint, _, grading_version = start.partition("/")
    found = sorted(
        each
        for each in known
        if _starts(each.fingerprint, fingerprint) and _starts(each.grading_version, grading_version)
    )
    if len(found) == 1:
        return found[0]
    served = ", ".join(map(str, found or sorted(known))) or "none"
    matches = "several checkpoints" if found else "no checkpoint that Prometheus saw in that time"
    hint = "; to choose one, add a slash and the start of its grading version" if found else ""
    raise CommandError(f"the {arm} {start} matches {matches}: {served}{hint}")


def _starts(version: str, start: str) -> bool:
    return version.removeprefix("sha256:").startswith(start.removeprefix("sha256:"))


def _arm(name: str, version: Version, windows: Windows, period: Period) -> Arm:
    count = sum(map(requests, windows.values()))
    if not count:
        raise CommandError(
            f"the {name} {version} has no scoring requests in {period.windows} windows of {period.window_s:g} s "
            "(a window shorter than two scrape intervals contains none)"
        )
    return Arm(*version, count, answer_quantiles(windows.values()))


def _row(judgement: Judgement) -> tuple[str, ...]:
    unit = judgement.unit
    ends = [_number(end, unit, "+") for end in (judgement.low, judgement.high)]
    return (
        judgement.name + _SHOWN[unit][0],
        _number(judgement.control, unit),
        _number(judgement.treatment, unit),
        _number(judgement.difference, unit, "+"),
        "–" if judgement.low is None else f"[{ends[0]}, {ends[1]}]",
        judgement.verdict,
    )


def _number(value: float | None, unit: Unit, sign: str = "") -> str:
    _, factor, decimals = _SHOWN[unit]
    # Adding zero turns a rounded -0.0 into 0.0.
    return "–" if value is None else f"{round(value * factor, decimals) + 0.0:{sign},.{decimals}f}"


def _utc(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
