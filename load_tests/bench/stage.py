"""Keeps several servers started, with all but one suspended by SIGSTOP.

Rounds must alternate (A B A B), or a machine that slows down looks like a slow peer. Restarting servers would take longer than
the rounds. Idle servers would disturb the measurement, since an idle vLLM may spin: on two cores one busy process costs up to
4.5 times the throughput. A suspended process uses no CPU, keeps its memory and caches, and needs no privilege. The price is
memory for all servers at once.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from load_tests.bench.measure import ProcessTree
from load_tests.bench.peer import Peer
from load_tests.processes import Running

_STOPS_WITHIN_S = 10
# Stopped, zombie, dead; or in an uninterruptible wait, after which the process stops.
_SUSPENDED = frozenset("TZXD")


def suspend(tree: ProcessTree) -> None:
    """Suspend all processes, parents first, repeatedly, since a running process may start more.

    Shells keep running: the one that a peer has kills the peer when this process ends.
    Raises TimeoutError for a process that keeps running.
    """
    latest = time.monotonic() + _STOPS_WITHIN_S
    while running := [process.pid for process in tree.processes() if _is_running(process.pid)]:
        if time.monotonic() > latest:
            raise TimeoutError(f"{len(running)} processes still run {_STOPS_WITHIN_S} s after SIGSTOP")
        for pid in running:
            _signal(pid, signal.SIGSTOP)
        time.sleep(0.001)


def resume(tree: ProcessTree) -> None:
    """Resume all processes, children first, so that no parent waits for a suspended child."""
    for process in reversed(tree.processes()):
        _signal(process.pid, signal.SIGCONT)


def _is_running(pid: int) -> bool:
    """Return whether a thread runs, by the third field of proc(5)'s stat; always False for a shell, see `suspend`."""
    if _is_shell(pid):
        return False
    try:
        stats = [each.read_text() for each in Path(f"/proc/{pid}/task").glob("*/stat")]
    except (FileNotFoundError, ProcessLookupError):
        return True  # a thread has just ended
    return not {stat.rpartition(")")[2].split()[0] for stat in stats} <= _SUSPENDED


def _is_shell(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).name() == "sh"
    return False


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


@dataclass(frozen=True, slots=True)
class Entrant:
    """A started contestant."""

    contestant: Peer
    running: Running
    tree: ProcessTree

    @property
    def label(self) -> str:
        """The name and tuning."""
        return label(self.contestant)

    @contextmanager
    def turn(self) -> Iterator[Running]:
        """Resume it for the block, and suspend it afterwards."""
        resume(self.tree)
        try:
            yield self.running
        finally:
            suspend(self.tree)


def label(contestant: Peer) -> str:
    """Format name and tuning for reports."""
    return f"{contestant.name} ({contestant.tuning})"


@contextmanager
def stage(contestants: Sequence[Peer], absent: dict[str, str]) -> Iterator[list[Entrant]]:
    """Start the contestants one after the other, suspending each, and stop all after the block.

    absent: filled with the label of each contestant that did not start, and the reason.
    """
    with ExitStack() as ending:
        entrants = []
        for contestant in contestants:
            started = time.monotonic()
            try:
                running = ending.enter_context(contestant.running())
            except (
                Exception
            ) as error:  # a peer's start may raise anything, for instance if it is not installed
                absent[label(contestant)] = f"{type(error).__name__}: {error}".splitlines()[0]
                print(f"{label(contestant)} did not start: {absent[label(contestant)]}", file=sys.stderr)
                continue
            tree = ProcessTree(running.pid)
            suspend(tree)
            # A suspended process handles no signal but SIGKILL.
            ending.callback(resume, tree)
            entrants.append(Entrant(contestant, running, tree))
            print(f"{label(contestant)} started in {time.monotonic() - started:.1f} s", file=sys.stderr)
        yield entrants


@contextmanager
def stage_all(contestants: Sequence[Peer]) -> Iterator[list[Entrant]]:
    """Start the contestants like `stage`. Raises RuntimeError when one does not start."""
    absent: dict[str, str] = {}
    with stage(contestants, absent) as entrants:
        if absent:
            raise RuntimeError(f"not started: {absent}")
        yield entrants
