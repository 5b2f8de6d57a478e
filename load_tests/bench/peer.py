"""The interface of a compared server: start it, call it over HTTP, stop it."""

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
        prompts: the same pairs as token ids, rendered by the checkpoint, for peers that take prompts.
    """

    query: str
    notes: tuple[Mapping[str, Any], ...]
    prompts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request to a peer, sent as JSON."""

    path: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Running:
    """A running peer: its URL, its process (whose children count as well), and the seconds until it was ready."""

    url: str
    pid: int
    ready_s: float


class Peer(Protocol):
    """One server with one tuning: `default` (out of the box) or `tuned`."""

    name: str
    tuning: Tuning

    def running(self) -> AbstractContextManager[Running]:
        """Start the server on the checkpoint, wait until it is ready, and stop all its processes after the block."""
        ...

    def calls(self, request: Request) -> Sequence[Call]:
        """Make the calls that score the request, which are sent concurrently; most peers need one."""
        ...

    def grades(self, answers: Sequence[Any]) -> list[float]:
        """Read each note's expected grade from the answers to `calls`, to check that all peers compute the same."""
        ...
