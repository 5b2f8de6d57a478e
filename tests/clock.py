from dataclasses import dataclass


@dataclass
class Clock:
    """Gives the seconds that a test sets."""

    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now
