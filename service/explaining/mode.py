"""The explanation modes, and the rules that a flip from one to another must follow."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

from service.contract.text import canonicalize
from service.errors import BadField, InvalidRequestError, ModeConflictError

ModeName = Literal["off", "on_request", "sample", "all"]
GUARD = "guard"
MAX_REASON_CHARS = 500


@dataclass(frozen=True, slots=True)
class Flip:
    """A requested change of mode. `ttl_s` is how long it holds (None for `off`), `rate` the share of pairs to sample."""

    mode: ModeName
    owner: str
    reason: str
    ttl_s: float | None = None
    rate: float | None = None


@dataclass(frozen=True, slots=True)
class Mode:
    """A flip that took place. Times are seconds since 1970, by the store's clock.

    `revision` counts the flips, so that two flips with equal content differ. 0 means that there was none yet.
    """

    revision: int
    mode: ModeName
    owner: str
    reason: str
    since: float
    expires: float | None
    rate: float | None


NEVER_FLIPPED = Mode(revision=0, mode="off", owner="", reason="", since=0.0, expires=None, rate=None)


def conflict(now: Mode, expected_revision: int) -> ModeConflictError:
    """Make the error for a flip that expected an older revision; it names who flipped the mode meanwhile."""
    by = f" by {now.owner}" if now.owner else ""
    return ModeConflictError(
        f"the flip was meant for revision {expected_revision}, but the mode is {now.mode} at revision {now.revision}{by}: "
        "read the mode again, then decide"
    )


def check_flip(flip: Flip, max_ttl_s: float) -> Flip:
    """Return the flip with its reason in canonical text. Raises InvalidRequestError that lists every bad field."""
    reason = canonicalize(flip.reason)
    wrong = []
    if not reason:
        wrong.append(BadField("reason", "give a reason: whoever is on call next reads it"))
    elif len(reason) > MAX_REASON_CHARS:
        wrong.append(BadField("reason", f"has {len(reason):,} characters, limit {MAX_REASON_CHARS}"))
    if flip.mode not in get_args(ModeName):
        wrong.append(BadField("mode", f"must be one of {', '.join(get_args(ModeName))}"))
    wrong += _check_ttl(flip, max_ttl_s)
    if flip.mode == "sample" and (flip.rate is None or not 0 < flip.rate <= 1):
        wrong.append(BadField("rate", "`sample` needs the share of pairs to explain, above 0 and up to 1"))
    if flip.mode != "sample" and flip.rate is not None:
        wrong.append(BadField("rate", "applies to `sample` only: leave it out"))
    if wrong:
        raise InvalidRequestError.listing(wrong)
    return replace(flip, reason=reason)


def _check_ttl(flip: Flip, max_ttl_s: float) -> list[BadField]:
    if flip.mode == "off":
        return [] if flip.ttl_s is None else [BadField("ttl_s", "`off` does not expire: leave it out")]
    if flip.ttl_s is None:
        return [BadField("ttl_s", "give a time to live in seconds: a mode that explains must expire")]
    if not 1 <= flip.ttl_s <= max_ttl_s:
        return [BadField("ttl_s", f"must be between 1 and {max_ttl_s:g} seconds")]
    return []
