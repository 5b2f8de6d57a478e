"""The interface of a compared server: start it, call it over HTTP, stop it."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from load_tests.processes import Running

Tuning = Literal["default", "tuned"]


@dataclass(frozen=True, slots=True)
class Asked:
    """A query and its notes (`id`, `title` and `body`, as /score takes them) before rendering."""

    query: str
    notes: tuple[Mapping[str, Any], ...]

    def body(self, deadline_ms: int = 60_000) -> dict[str, Any]:
        """Make the body of a POST /score. By default, the deadline is the service's maximum."""
        return {"query": self.query, "notes": list(self.notes), "deadline_ms": deadline_ms}


@dataclass(frozen=True, slots=True)
class Request(Asked):
    """A query and its notes, with the pairs as token ids for peers that take prompts."""

    prompts: tuple[tuple[int, ...], ...]


class Peer(Protocol):
    """One server with one tuning: `default` (out of the box) or `tuned`."""

    name: str
    tuning: Tuning

    def running(self) -> AbstractContextManager[Running]:
        """Start it on the checkpoint, wait until it is ready, and stop all its processes after the block."""
        ...

    def call(self, request: Request) -> tuple[str, Mapping[str, Any]]:
        """Make the path and the JSON body of the POST that scores the request."""
        ...

    def grades(self, answer: Any) -> list[float]:
        """Read each note's expected grade from the answer to `call`, to check that all peers compute the same."""
        ...
