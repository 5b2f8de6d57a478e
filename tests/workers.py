"""Tests in several workers (`pytest -n 2`): which of them share one, and which have the machine to themselves."""

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
    """Gives a worker the tests of a file, or of files that belong together, one after the other."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0].removeprefix("tests/")
        return "together" if file in TOGETHER else file


def arrange(items: list[pytest.Item]) -> None:
    """Put first what takes long, and last the files in which a test runs alone: then nobody waits for it."""
    last = {item.path for item in items if item.get_closest_marker(ALONE)}

    def rank(item: pytest.Item) -> tuple[bool, int]:
        file = item.path.relative_to(HERE).as_posix()
        together = TOGETHER.index(file) if file in TOGETHER else len(TOGETHER)
        return item.path in last, together

    items.sort(key=rank)


@contextmanager
def machine(*, alone: bool) -> Iterator[None]:
    """Hold this machine, alone or with others; waits until that can be.

    Two locks of files that are here anyway. Who wants to be alone is not overtaken while it waits.
    """
    with (HERE / "workers.py").open() as queue, (HERE / "conftest.py").open() as held:
        fcntl.flock(queue, fcntl.LOCK_EX)
        fcntl.flock(held, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(queue, fcntl.LOCK_UN)
        yield
