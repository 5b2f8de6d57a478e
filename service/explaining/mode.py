"""The explanation modes, and the rules that a flip from one to another must follow."""

from dataclasses import dataclass
from typing import Literal, get_args

from service.contract.text import canonicalize
from service.errors import BadField, InvalidRequestError, ModeConflictError

ModeName = Literal["off", "on_request", "sample", "all"]
GUARD = "guard"


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
    expires: float | None = None
    rate: float | None = None


NEVER_FLIPPED = Mode(revision=0, mode="off", owner="", reason="", since=0.0)


@dataclass(frozen=True, slots=True)
class FlipLimits:
    """The longest time to live, in seconds, and the longest reason, in characters."""

    max_ttl_s: float
    max_reason_chars: int = 500


def conflict(now: Mode, expected_revision: int) -> ModeConflictError:
    """Make the error for a flip that expected an older revision; it names who flipped the mode meanwhile."""
    by = f" by {now.owner}" if now.owner else ""
    return ModeConflictError(
        f"the flip was meant for revision {expected_revision}, but the mode is {now.mode} at revision {now.revision}{by}: "
        "read the mode again, then decide"
    )


def check_flip(flip: Flip, limits: FlipLimits) -> Flip:
    """Return the flip with its reason in canonical text. Raises InvalidRequestError that lists every bad field."""
    reason = canonicalize(flip.reason)
    wrong = []
    if not reason:
        wrong.append(BadField("reason", "give a reason: whoever is on call next reads it"))
    elif len(reason) > limits.max_reason_chars:
        wrong.append(BadField("reason", f"has {len(reason):,} characters, limit {limits.max_reason_chars}"))
    if flip.mode not in get_args(ModeName):
        wrong.append(BadField("mode", f"must be one of {', '.join(get_args(ModeName))}"))
    wrong += _check_ttl(flip, limits)
    if flip.mode == "sample" and (flip.rate is None or not 0 < flip.rate <= 1):
        wrong.append(BadField("rate", "`sample` needs the share of pairs to explain, above 0 and up to 1"))
    if flip.mode != "sample" and flip.rate is not None:
        wrong.append(BadField("rate", "applies to `sample` only: leave it out"))
    if wrong:
        raise InvalidRequestError.listing(wrong)
    return Flip(flip.mode, flip.owner, reason, flip.ttl_s, flip.rate)


def _check_ttl(flip: Flip, limits: FlipLimits) -> list[BadField]:
    if flip.mode == "off":
        return [] if flip.ttl_s is None else [BadField("ttl_s", "`off` does not expire: leave it out")]
    if flip.ttl_s is None:
        return [BadField("ttl_s", "give a time to live in seconds: a mode that explains must expire")]
    if not 1 <= flip.ttl_s <= limits.max_ttl_s:
        return [BadField("ttl_s", f"must be between 1 and {limits.max_ttl_s:g} seconds")]
    return []
