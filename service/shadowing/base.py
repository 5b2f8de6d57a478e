"""The interface to a shadow: another service, whose checkpoint may replace the one that serves here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from service.contract.comparison import Graded
from service.contract.manifest import ReadingKind

# Marks a mirrored request. The receiver does not mirror it again, so two services may shadow each other.
SHADOW_HEADER = "Notegrade-Shadow"


@dataclass(frozen=True, slots=True)
class MirroredNote:
    """A note as the caller sent it.

    Attributes:
        served: its answered grade and score; None where it was not scored.
        reading: how it was read for them.
    """

    id: str
    title: str | None
    body: str
    served: Graded | None
    reading: ReadingKind = "text"


@dataclass(frozen=True, slots=True)
class Mirrored:
    """An answered request to mirror.

    Attributes:
        criteria: as in the caller's request; with None each checkpoint uses its own default.
        engine_ms: the engine's time for its pairs; None where any pair came from a cache.
    """

    request_id: str
    query: str
    criteria: str | None
    notes: tuple[MirroredNote, ...]
    engine_ms: float | None


@dataclass(frozen=True, slots=True)
class TargetAnswer:
    """The shadow's answer to a mirrored request.

    Attributes:
        name, fingerprint, grading_version: those of its checkpoint; an older release states no grading version.
        grades: the number of grades on its scale; None where it scored no note.
        notes: in the request's order; None for a note that it did not score.
        readings: how it read each note; "text" for a note that it did not score, and from an older release.
        engine_ms: the same as `Mirrored.engine_ms`, for its engine.
    """

    name: str
    fingerprint: str
    grading_version: str | None
    grades: int | None
    notes: Sequence[Graded | None]
    readings: Sequence[ReadingKind]
    engine_ms: float | None


class Target(Protocol):
    """Scores mirrored requests with another checkpoint."""

    async def score(self, mirrored: Mirrored) -> TargetAnswer:
        """Score a mirrored request. Raises ShadowError, also on a timeout."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...
