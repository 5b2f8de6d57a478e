"""Tests in several workers (`pytest -n 2 --dist loadgroup`): which of them share one, and which have the machine to themselves."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# Files whose tests share what is costly to make: a trained checkpoint, a base image, a service. What takes longest stands first.
TOGETHER = {
    "a trained checkpoint": [
        f"end_to_end/test_{name}.py" for name in ("training", "explaining", "console", "runbooks", "shadow")
    ],
    "a base image": ["deploy/test_image.py", "deploy/test_trainer_image.py"],
    "a service": ["end_to_end/test_serving.py", "end_to_end/test_readme.py"],
}
ALONE = "alone"


def group_of(item: pytest.Item) -> str:
    """Whose tests run in one worker: those of a file, where nothing more is said."""
    if item.get_closest_marker(ALONE):
        return ALONE
    place = item.path.relative_to(HERE).as_posix()
    return next((name for name, places in TOGETHER.items() if place in places), place)


def arrange(items: list[pytest.Item]) -> None:
    """Tell xdist the groups, in the order in which workers should take them: what takes long first, what runs alone last."""
    groups = {item: group_of(item) for item in items}
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))
    first = [*TOGETHER]
    rank = {group: first.index(group) if group in first else len(first) for group in groups.values()}
    items.sort(key=lambda item: (groups[item] == ALONE, rank[groups[item]]))


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
