"""Makes requests to mirror."""

from service.contract.comparison import Graded
from service.shadowing.base import Mirrored, MirroredNote

SERVED = Graded(1, 0.3)


def mirrored(*bodies: str, served: Graded | None = SERVED, engine_ms: float | None = 5.0) -> Mirrored:
    """Make a request with notes of these bodies, each served the grade `served`."""
    notes = tuple(
        MirroredNote(f"n{number}", "A title", body, served) for number, body in enumerate(bodies or ("body",))
    )
    return Mirrored("r-1", "quiet cafes", None, notes, engine_ms)
