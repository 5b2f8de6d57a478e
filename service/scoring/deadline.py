"""The instant by which a request must be answered."""

import asyncio
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Deadline:
    """An instant on the event loop's clock. A length of time is called a timeout."""

    at: float

    @classmethod
    def after_ms(cls, deadline_ms: float) -> "Deadline":
        """Return the deadline that is `deadline_ms` from now. Needs a running event loop."""
        return cls(asyncio.get_running_loop().time() + deadline_ms / 1000)

    def remaining_s(self) -> float:
        """Return the seconds that are left, 0 after the deadline."""
        return max(0.0, self.at - asyncio.get_running_loop().time())
