"""The port to the service whose checkpoint might take the place of ours."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from service.contract.comparison import Graded

# Of a mirrored request: whoever gets it does not mirror it again, so that two services may shadow each other.
SHADOW_HEADER = "Notegrade-Shadow"


@dataclass(frozen=True, slots=True)
class MirroredNote:
    """A note as the caller sent it; `served` is what was answered for it, None where it was not scored."""

    id: str
    title: str | None
    body: str
    served: Graded | None


@dataclass(frozen=True, slots=True)
class Mirrored:
    """A request that has been answered.

    Attributes:
        criteria: as the caller asked for it; None leaves it to each checkpoint's own default.
        engine_ms: what its pairs took in the engine; None where any of them was known.
    """

    request_id: str
    query: str
    criteria: str | None
    notes: tuple[MirroredNote, ...]
    engine_ms: float | None


@dataclass(frozen=True, slots=True)
class TargetAnswer:
    """What the other service said.

    Attributes:
        name, fingerprint: of its checkpoint.
        grades: how many its scale has; None where it scored no note.
        notes: in the order of the request's; None where it did not score one.
        engine_ms: as `Mirrored.engine_ms`.
    """

    name: str
    fingerprint: str
    grades: int | None
    notes: Sequence[Graded | None]
    engine_ms: float | None


class Target(Protocol):
    """Scores mirrored requests by another checkpoint."""

    async def score(self, mirrored: Mirrored) -> TargetAnswer:
        """Its answer. Raises ShadowError, also when it takes too long."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...
