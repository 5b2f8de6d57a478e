"""Distributes tests over several workers (`pytest -n 2`): some files share a worker, some tests run alone."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

HERE = Path(__file__).parent
# One worker has all of them, in this order: some share services, and more than two files at once that run some would leave little
# of 24 GiB of memory. The last ones leave three replicas behind, idle.
TOGETHER = (
    *(f"end_to_end/test_{name}.py" for name in ("engine_faults", "redis_faults", "overload")),
    *(f"end_to_end/test_{name}.py" for name in ("serving", "readme")),
    "deploy/test_stack.py",
    *(f"end_to_end/test_{name}.py" for name in ("explaining", "console", "runbooks", "shadow")),
)
ALONE = "alone"


class Groups(LoadScopeScheduling):  # type: ignore[misc]  # mypy does not read xdist
    """Gives one worker all tests of a file, or of files that run together, one after the other."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0].removeprefix("tests/")
        return "together" if file in TOGETHER else file


def arrange(items: list[pytest.Item]) -> None:
    """Put the longest files first, and files with a test that runs alone last, so that no worker waits for it."""
    last = {item.path for item in items if item.get_closest_marker(ALONE)}

    def rank(item: pytest.Item) -> tuple[bool, int]:
        file = item.path.relative_to(HERE).as_posix()
        together = TOGETHER.index(file) if file in TOGETHER else len(TOGETHER)
        return item.path in last, together

    items.sort(key=rank)


@contextmanager
def machine(*, alone: bool) -> Iterator[None]:
    """Hold this machine, alone or with others; waits until it is available.

    It locks two existing files. A test that runs alone is not overtaken while it waits.
    """
    with (HERE / "workers.py").open() as queue, (HERE / "conftest.py").open() as held:
        fcntl.flock(queue, fcntl.LOCK_EX)
        fcntl.flock(held, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(queue, fcntl.LOCK_UN)
        yield
