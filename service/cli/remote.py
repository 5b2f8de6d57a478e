"""Call a running service over HTTP, for commands."""

import os
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import httpx

from service.errors import CommandError


@dataclass(frozen=True, slots=True)
class Remote:
    """A running service and the key for it, by default that of NOTEGRADE_KEY. Its refusals are raised as CommandError."""

    url: str
    key: str | None = field(default_factory=lambda: os.environ.get("NOTEGRADE_KEY"))
    transport: httpx.BaseTransport | None = None

    def send(self, method: str, path: str, *, accept: Collection[str] = (), **options: Any) -> httpx.Response:
        """Send a request and return its successful answer; `options` are httpx's. Raises CommandError.

        A problem of a type in `accept` is returned, too.
        """
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        try:
            with httpx.Client(
                base_url=self.url, headers=headers, timeout=10, transport=self.transport
            ) as client:
                response = client.request(method, path, **options)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise CommandError(f"{self.url} did not answer: {error}") from error
        if response.is_error and _problem(response).get("type") not in accept:
            raise CommandError(f"{self.url} refused: {_detail(response)}")
        return response


def utc(at: float) -> str:
    """Format a time, in seconds since 1970, as the commands show it."""
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(at))


def _problem(response: httpx.Response) -> dict[str, Any]:
    """Return a problem's fields; none for an answer that is not Notegrade's."""
    try:
        found = response.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _detail(response: httpx.Response) -> str:
    try:
        problem = _problem(response)
        errors = problem.get("errors") or ()
        wrong = "; ".join(f"{bad['field']}: {bad['message']}" for bad in errors)
        return f"{problem['detail']}{f' ({wrong})' if wrong else ''}"
    except (KeyError, TypeError):
        return f"HTTP {response.status_code}, in an answer that is not Notegrade's"
