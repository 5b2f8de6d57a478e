"""Servers that are not measured use no CPU time, and all processes end."""

import sys
import time
from contextlib import AbstractContextManager

import psutil
import pytest

from load_tests.bench.stage import Entrant, label, stage
from load_tests.processes import Running, Server, free_port, run_server
from tests.load_tests.bench.toy import AbsentPeer, ToyPeer
from tests.waiting import wait_until

# It and its child use CPU time continuously, as an idle vLLM may.
SPINNER = """
import http.server, subprocess, sys, threading
subprocess.Popen([sys.executable, "-c", "while True: pass"])
threading.Thread(target=lambda: [None for _ in iter(int, 1)], daemon=True).start()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


class Spinner(ToyPeer):
    def running(self) -> AbstractContextManager[Running]:
        port = free_port()
        return run_server(Server([sys.executable, "-c", SPINNER, str(port)], {}, port, "/", timeout_s=60))


def cpu_of(entrant: Entrant, seconds: float = 0.3) -> float:
    """Return the CPU seconds that the contestant uses within this time."""
    before = entrant.tree.cpu_seconds()
    time.sleep(seconds)
    return entrant.tree.cpu_seconds() - before


@pytest.mark.timeout(120)
def test_one_contestant_runs_while_the_others_are_suspended() -> None:
    with stage([Spinner("a"), Spinner("b")], {}) as (first, second):
        assert len(first.tree.processes()) >= 2
        assert cpu_of(first) == cpu_of(second) == 0
        with first.turn():
            wait_until(lambda: cpu_of(first) > 0)
            assert cpu_of(second) == 0
        assert cpu_of(first) == 0
        everybody = [*first.tree.processes(), *second.tree.processes()]
        # The shell that ends them if this process dies keeps running.
        asleep = {process.status() for process in everybody if process.name() != "sh"}
        assert asleep == {psutil.STATUS_STOPPED}
        assert psutil.STATUS_STOPPED not in {
            process.status() for process in everybody if process.name() == "sh"
        }
    wait_until(lambda: not any(process.is_running() for process in everybody))


@pytest.mark.timeout(120)
def test_failed_turn_still_suspends() -> None:
    with stage([Spinner("a")], {}) as [entrant]:
        with pytest.raises(ValueError, match="broken"), entrant.turn():
            raise ValueError("broken")
        assert cpu_of(entrant) == 0


def test_contestant_that_does_not_start_is_recorded() -> None:
    absent: dict[str, str] = {}
    with stage([AbsentPeer("a"), AbsentPeer("b", tuning="default")], absent) as entrants:
        assert entrants == []
    assert absent == {
        "a (tuned)": "RuntimeError: not installed",
        "b (default)": "RuntimeError: not installed",
    }


def test_an_entrant_is_named_by_its_contestant_and_tuning() -> None:
    made = Entrant(Spinner("a"), Running("", 1, 0.0), None)  # type: ignore[arg-type]
    assert made.label == label(Spinner("a")) == "a (tuned)"
