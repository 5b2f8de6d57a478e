"""What `notegrade mode` does: reads and flips the explanation mode of a running service over HTTP."""

import os
import re
import time
from dataclasses import dataclass
from typing import Any

import httpx

from service.errors import CommandError

# For the command alone: a service is told neither.
URL_VARIABLE, KEY_VARIABLE = "NOTEGRADE_URL", "NOTEGRADE_KEY"
PATH = "/admin/explanation-mode"
_UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True, slots=True)
class Remote:
    """A running service. Whatever it refuses is a CommandError that says what it said."""

    url: str
    key: str | None = None
    transport: httpx.BaseTransport | None = None

    @classmethod
    def from_environment(cls, url: str | None) -> "Remote":
        """At the URL, else NOTEGRADE_URL, else on this machine; with the key of NOTEGRADE_KEY."""
        return cls(url or os.environ.get(URL_VARIABLE, "http://127.0.0.1:8000"), os.environ.get(KEY_VARIABLE))

    def read(self) -> dict[str, Any]:
        """The mode that applies now, with its ETag under `etag`."""
        response = self._send("GET", PATH)
        return {**response.json(), "etag": response.headers["etag"]}

    def flip(self, change: dict[str, Any], etag: str) -> dict[str, Any]:
        """Flip it, if it still is what the ETag names; the mode that then applies."""
        found: dict[str, Any] = self._send("PUT", PATH, json=change, headers={"If-Match": etag}).json()
        return found

    def history(self, most: int) -> list[dict[str, Any]]:
        """The last flips, newest first."""
        flips: list[dict[str, Any]] = self._send("GET", f"{PATH}/history", params={"most": most}).json()[
            "flips"
        ]
        return flips

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        try:
            with httpx.Client(base_url=self.url, timeout=10, transport=self.transport) as client:
                response = client.request(
                    method, path, **{**options, "headers": {**headers, **options.get("headers", {})}}
                )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise CommandError(f"{self.url} did not answer: {error}") from error
        if response.is_error:
            raise CommandError(f"{self.url} refused: {_detail(response)}")
        return response


def parse_ttl(text: str) -> float:
    """Seconds from `90s`, `30m`, `2h` or a bare number of seconds. Raises CommandError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if found is None:
        raise CommandError(f"--ttl is a time such as 90s, 30m or 2h, not {text}")
    return float(found[1]) * _UNITS.get(found[2], 1)


def describe(mode: dict[str, Any]) -> str:
    """The mode for a person, in a line or two."""
    last = mode["last"]
    if not last["revision"]:
        return "off: nobody has flipped it yet"
    ended = mode["mode"] == "off" and last["mode"] != "off"
    left = "its time is over" if ended else f"{mode['left_s']:.0f} s left" if mode["left_s"] else "no end"
    lines = [f"{mode['mode']} ({left})", f"last flip: {describe_flip(last)}"]
    if mode["unread_s"] is not None:
        lines.append(
            f"Redis has not answered this replica for {mode['unread_s']:.0f} s: the last mode known applies"
        )
    return "\n".join(lines)


def describe_flip(flip: dict[str, Any]) -> str:
    """A line of the history: when (UTC), what, who, why."""
    at = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(flip["since"]))
    rate = "" if flip["rate"] is None else f" {flip['rate']:.0%}"
    ttl = "" if flip["expires"] is None else f" for {flip['expires'] - flip['since']:.0f} s"
    return f"{at} {flip['mode']}{rate}{ttl} by {flip['owner']}: {flip['reason']}"


def _detail(response: httpx.Response) -> str:
    try:
        problem = response.json()
        errors = problem.get("errors") or ()
        wrong = "; ".join(f"{bad['field']}: {bad['message']}" for bad in errors)
        return f"{problem['detail']}{f' ({wrong})' if wrong else ''}"
    except (ValueError, KeyError, AttributeError):
        return f"HTTP {response.status_code}, and not by Notegrade"
