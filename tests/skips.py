"""Prints, at the end of a test run, how many tests did not run, and why."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

_KEY = "notegrade_deselected"


class Skips:
    """Reports skipped and deselected tests by reason, as a plugin of pytest. It takes the place of pytest's `-rs`, which has a line
    for each place in the code.

    With pytest-xdist, only its workers see what is deselected: each counts all of it, and sends the counts when it ends.
    """

    def __init__(self) -> None:
        self._deselected: Counter[str] = Counter()

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        """Count tests that the command line leaves out."""
        self._deselected.update(_why_deselected(item) for item in items)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Send a worker's counts to the process that reports."""
        if (output := getattr(session.config, "workeroutput", None)) is not None:
            output[_KEY] = dict(self._deselected)

    @pytest.hookimpl(optionalhook=True)  # xdist's
    def pytest_testnodedown(self, node: Any) -> None:
        """Take a worker's counts. A worker that crashed has none."""
        if counts := getattr(node, "workeroutput", {}).get(_KEY):
            self._deselected = Counter(counts)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Write a line for each reason."""
        lines = [*_skipped(terminalreporter), *_left_out(self._deselected)]
        if lines:
            terminalreporter.section("tests that did not run")
            terminalreporter.write_line("\n".join(lines))


def _why_deselected(item: pytest.Item) -> str:
    if item.get_closest_marker("slow"):
        return "they are slow: `make test-slow` runs them"
    return "the command line leaves them out: `make test` runs them"


def _skipped(reporter: pytest.TerminalReporter) -> Iterator[str]:
    files: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for report in reporter.getreports("skipped"):
        *_, reason = report.longrepr
        file = report.nodeid.partition("::")[0]
        files[reason.removeprefix("Skipped: ")][Path(file).name] += 1
    for reason, counts in files.items():
        yield f"{counts.total()} skipped, {reason} ({', '.join(counts)})"


def _left_out(counts: Counter[str]) -> Iterator[str]:
    for reason, count in counts.items():
        yield f"{count} not selected, {reason}"
