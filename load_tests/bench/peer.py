"""What is compared: a server that is started, asked over HTTP and ended, all on the same model, pairs and prompts."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Tuning = Literal["default", "tuned"]


@dataclass(frozen=True, slots=True)
class Request:
    """A query and its notes.

    Attributes:
        notes: `id`, `title` and `body` of each, as /score takes them.
        prompts: the same pairs as the checkpoint renders them, in token ids: for peers that take prompts.
    """

    query: str
    notes: tuple[Mapping[str, Any], ...]
    prompts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request of a peer's, to be sent as JSON."""

    path: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Running:
    """A peer that answers: where, and the process whose CPU time and memory (with its children's) are its own."""

    url: str
    pid: int
    ready_s: float


class Peer(Protocol):
    """One server at one setting."""

    name: str
    tuning: Tuning

    def running(self) -> AbstractContextManager[Running]:
        """Start it on the checkpoint, wait until it is ready, and end it with all its processes after the block."""
        ...

    def calls(self, request: Request) -> Sequence[Call]:
        """The calls that score the request, sent at once; most peers need one."""
        ...

    def grades(self, answers: Sequence[Any]) -> list[float]:
        """Expected grade of each note, from the answers to `calls`: that the peers compute the same is checked, not assumed."""
        ...
