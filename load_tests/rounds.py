"""The order of the sides within a round (docs/decisions/0016-bench.md)."""

from collections.abc import Iterable
from typing import TypeVar

Side = TypeVar("Side")


def in_turn(sides: Iterable[Side], round_number: int) -> list[Side]:
    """Order the sides of a round; every second round is reversed, so that none is always first."""
    ordered = list(sides)
    return ordered if round_number % 2 == 0 else ordered[::-1]
