"""A Python client of Notegrade, for ranking services."""

from notegrade_client.client import AsyncNotegrade, Note, Notegrade
from notegrade_client.errors import (
    BadField,
    DeadlineError,
    NotegradeError,
    UnreachableError,
    UnreadableError,
)
from notegrade_client.models import Citation, Explanation, Model, Result, ScoreAnswer, Step, Timing
from notegrade_client.retries import Retries

__all__ = [
    "AsyncNotegrade",
    "BadField",
    "Citation",
    "DeadlineError",
    "Explanation",
    "Model",
    "Note",
    "Notegrade",
    "NotegradeError",
    "Result",
    "Retries",
    "ScoreAnswer",
    "Step",
    "Timing",
    "UnreachableError",
    "UnreadableError",
]
