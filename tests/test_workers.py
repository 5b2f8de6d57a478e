"""Tests share the machine, except those marked `alone`."""

import fcntl
import threading
from pathlib import Path

import pytest

from tests.waiting import wait_until
from tests.workers import FIRST, GROUPS, HERE, machine


@pytest.fixture(autouse=True)
def queue(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Give this test its own locks: the suite holds its locks at the same time."""
    for name in ("workers.py", "conftest.py"):
        (tmp_path / name).touch()
    monkeypatch.setattr("tests.workers.HERE", tmp_path)
    return tmp_path / "workers.py"


def is_held(lock: Path) -> bool:
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def test_files_that_are_named_exist() -> None:
    assert [file for file in (*FIRST, *GROUPS) if not (HERE / file).is_file()] == []


def test_a_test_that_runs_alone_waits_and_is_not_overtaken(queue: Path) -> None:
    happened: list[str] = []
    first_may_end = threading.Event()

    def hold(name: str) -> None:
        with machine(alone=name == "alone"):
            happened.append(name)
            if name == "first":
                first_may_end.wait(30)
            happened.append(f"{name} ends")

    first, alone, later = (threading.Thread(target=hold, args=[name]) for name in ("first", "alone", "later"))
    first.start()
    wait_until(lambda: happened == ["first"])
    alone.start()
    wait_until(lambda: is_held(queue))
    later.start()
    first_may_end.set()
    for thread in (first, alone, later):
        thread.join(30)
    assert happened == ["first", "first ends", "alone", "alone ends", "later", "later ends"]


def test_other_tests_hold_the_machine_at_the_same_time() -> None:
    with machine(alone=False), machine(alone=False):
        pass
