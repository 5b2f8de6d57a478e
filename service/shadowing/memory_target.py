"""An in-memory shadow, for tests."""

from collections.abc import Callable

from service.contract.comparison import Graded
from service.contract.manifest import ReadingKind
from service.errors import ShadowError
from service.shadowing.base import Mirrored, MirroredNote, TargetAnswer


class MemoryTarget:
    """Grades each note with a function; while `is_down`, it does not answer."""

    def __init__(
        self,
        judge: Callable[[str, MirroredNote], Graded | None],
        grades: int,
        fingerprint: str = "sha256:memory",
        reading: ReadingKind = "text",
    ) -> None:
        """`judge` gets the query and a note; it returns None for a note that cannot be scored."""
        self.asked: list[Mirrored] = []
        self.is_down = False
        self.fingerprint = fingerprint
        self.grading_version = "sha256:memory"
        self._judge = judge
        self._grades = grades
        self._reading = reading

    async def score(self, mirrored: Mirrored) -> TargetAnswer:
        if self.is_down:
            raise ShadowError("the shadow did not answer: it is down")
        self.asked.append(mirrored)
        notes = tuple(self._judge(mirrored.query, note) for note in mirrored.notes)
        grades = self._grades if any(notes) else None
        readings = (self._reading,) * len(notes)
        return TargetAnswer(
            "memory", self.fingerprint, self.grading_version, grades, notes, readings, float(len(notes))
        )

    async def close(self) -> None:
        self.is_down = True
