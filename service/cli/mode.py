"""Read and flip the explanation mode of a running service over HTTP, for `notegrade mode`."""

import re
from typing import Any

from service.cli.remote import Remote, utc
from service.errors import CommandError

PATH = "/admin/explanation-mode"
_UNITS = {"s": 1, "m": 60, "h": 3600}


def read_mode(remote: Remote) -> dict[str, Any]:
    """Return the mode that applies now, with its ETag under `etag`."""
    response = remote.send("GET", PATH)
    return {**response.json(), "etag": response.headers["etag"]}


def flip_mode(remote: Remote, change: dict[str, Any], etag: str) -> dict[str, Any]:
    """Flip the mode if it is still the one that the ETag names; return the mode that then applies."""
    mode: dict[str, Any] = remote.send("PUT", PATH, json=change, headers={"If-Match": etag}).json()
    return mode


def read_history(remote: Remote, most: int) -> list[dict[str, Any]]:
    """Return the last flips, newest first."""
    flips: list[dict[str, Any]] = remote.send("GET", f"{PATH}/history", params={"most": most}).json()["flips"]
    return flips


def parse_ttl(text: str) -> float:
    """Return the seconds of `90s`, `30m`, `2h` or a plain number of seconds. Raises CommandError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if found is None:
        raise CommandError(f"--ttl is a time such as 90s, 30m or 2h, not {text}")
    return float(found[1]) * _UNITS.get(found[2], 1)


def describe(mode: dict[str, Any]) -> str:
    """Describe the mode for a person, in two or three lines."""
    last = mode["last"]
    if not last["revision"]:
        return "off: nobody has flipped it yet"
    ended = mode["mode"] == "off" and last["mode"] != "off"
    left = (
        "its time to live has ended"
        if ended
        else f"{mode['left_s']:.0f} s left"
        if mode["left_s"]
        else "no end"
    )
    lines = [f"{mode['mode']} ({left})", f"last flip: {describe_flip(last)}"]
    if mode["unread_s"] is not None:
        lines.append(
            f"Redis has not answered this replica for {mode['unread_s']:.0f} s: the last known mode applies"
        )
    return "\n".join(lines)


def describe_flip(flip: dict[str, Any]) -> str:
    """Describe a flip in one line: time (UTC), mode, owner and reason."""
    rate = "" if flip["rate"] is None else f" {100 * flip['rate']:.4g}%"
    ttl = "" if flip["expires"] is None else f" for {flip['expires'] - flip['since']:.0f} s"
    return f"{utc(flip['since'])} {flip['mode']}{rate}{ttl} by {flip['owner']}: {flip['reason']}"
