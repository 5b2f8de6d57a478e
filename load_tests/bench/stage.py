"""Servers that are all up while one of them works: the others stand still, stopped by SIGSTOP.

Rounds have to go A B A B, or a machine that slows down looks like a slow peer. Starting a server anew for each round would
take longer than the rounds; leaving the others to idle would not do either, since an idle vLLM may spin, and with two cores
one busy process beside costs up to 4.5 times the throughput. A stopped tree takes no time at all, keeps its memory and its
warm caches, and needs no cgroup or privilege. It costs memory (and, on an accelerator, a share of its memory for each).
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
from typing import Generic, Protocol, TypeVar

import psutil

from load_tests.bench.measure import ProcessTree
from load_tests.bench.peer import Running, Tuning

_STOPS_WITHIN_S = 10
# Stopped, zombie, dead; and waiting for a disk or a child, after which it stops.
_STAND_STILL = frozenset("TZXD")


class Contestant(Protocol):
    """What can be put on a stage: a peer, or the offline engine."""

    name: str
    tuning: Tuning

    def running(self) -> contextlib.AbstractContextManager[Running]:
        """See `load_tests.bench.peer.Peer`."""
        ...


ContestantT = TypeVar("ContestantT", bound=Contestant)


def stop(tree: ProcessTree) -> None:
    """Parents first, and again until all stand still: one that still runs may start more, and takes the signal only when its core comes to it.

    But not shells: peers have one that only waits for this process to end, and has to end theirs when it does.
    Raises TimeoutError for a process that goes on.
    """
    latest = time.monotonic() + _STOPS_WITHIN_S
    while moving := [process.pid for process in tree.processes() if _moves(process.pid)]:
        if time.monotonic() > latest:
            raise TimeoutError(f"{len(moving)} processes go on {_STOPS_WITHIN_S} s after SIGSTOP")
        for pid in moving:
            _signal(pid, signal.SIGSTOP)
        time.sleep(0.001)


def go_on(tree: ProcessTree) -> None:
    """Children first: no parent may find that a child doesn't answer."""
    for process in reversed(tree.processes()):
        _signal(process.pid, signal.SIGCONT)


def _moves(pid: int) -> bool:
    """Whether one of its threads does; their states are the third field of proc(5)'s stat. A shell never does, see `stop`."""
    if _is_shell(pid):
        return False
    try:
        stats = [each.read_text() for each in Path(f"/proc/{pid}/task").glob("*/stat")]
    except (FileNotFoundError, ProcessLookupError):
        return True  # a thread ended meanwhile
    return not {stat.rpartition(")")[2].split()[0] for stat in stats} <= _STAND_STILL


def _is_shell(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).name() == "sh"
    return False


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


@dataclass(frozen=True, slots=True)
class Entrant(Generic[ContestantT]):
    """A contestant that is up."""

    contestant: ContestantT
    running: Running
    tree: ProcessTree

    @property
    def label(self) -> str:
        """Name and tuning."""
        return label(self.contestant)

    @contextmanager
    def turn(self) -> Iterator[Running]:
        """Let it work inside the block, and stand still after it."""
        go_on(self.tree)
        try:
            yield self.running
        finally:
            stop(self.tree)


def label(contestant: Contestant) -> str:
    """Name and tuning, as reports show them."""
    return f"{contestant.name} ({contestant.tuning})"


@contextmanager
def stage(contestants: Sequence[ContestantT], absent: dict[str, str]) -> Iterator[list[Entrant[ContestantT]]]:
    """Start them one after the other, each alone, and end them all after the block.

    absent: takes the label of what did not start, and why; the others go on without it.
    """
    with ExitStack() as ending:
        entrants = []
        for contestant in contestants:
            started = time.monotonic()
            try:
                running = ending.enter_context(contestant.running())
            except Exception as error:  # whatever a peer's own start raises: one that is not installed, say
                absent[label(contestant)] = f"{type(error).__name__}: {error}".splitlines()[0]
                print(f"{label(contestant)} did not start: {absent[label(contestant)]}", file=sys.stderr)
                continue
            tree = ProcessTree(running.pid)
            stop(tree)
            # A process that stands still ends by nothing but SIGKILL.
            ending.callback(go_on, tree)
            entrants.append(Entrant(contestant, running, tree))
            print(f"{label(contestant)} is up after {time.monotonic() - started:.1f} s", file=sys.stderr)
        yield entrants


def in_turn(entrants: Sequence[Entrant[ContestantT]], round_number: int) -> list[Entrant[ContestantT]]:
    """The order of a round: every other one the other way round, so that nobody is always the first."""
    return list(entrants if round_number % 2 == 0 else reversed(entrants))
