"""Canonical text: the one form that is hashed for the cache and rendered for the engine."""

import re
import unicodedata

# General category Cc, which Unicode's stability policy has closed for ever.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]+")


def canonicalize(text: str | None) -> str:
    """The text in Unicode NFC, control characters dropped, white space collapsed to single blanks and trimmed.

    Format characters (category Cf: zero-width joiners, bidi marks) stay: emoji and many scripts need them.
    Source: UAX #15 (normalisation forms), UAX #44 (general category Cc).
    """
    if not text:
        return ""
    # White space goes first: tab and newline are control characters too, but they separate words.
    collapsed = _collapse(text)
    if not _CONTROL.search(collapsed):
        return collapsed
    # One can have stood alone between two blanks, or between a letter and its combining mark.
    return _collapse(_CONTROL.sub("", collapsed))


def _collapse(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())
