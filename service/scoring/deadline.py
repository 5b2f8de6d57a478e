"""The instant by which a request must be answered."""

import asyncio
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Deadline:
    """An instant on the event loop's clock. (A length of time would be called a timeout.)"""

    at: float

    @classmethod
    def after_ms(cls, deadline_ms: float) -> "Deadline":
        """The deadline that many milliseconds from now; needs a running loop."""
        return cls(asyncio.get_running_loop().time() + deadline_ms / 1000)

    def remaining_s(self) -> float:
        """Seconds left, 0 when it has passed."""
        return max(0.0, self.at - asyncio.get_running_loop().time())
