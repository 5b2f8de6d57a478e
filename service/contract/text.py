"""Canonical text: the form of a text that is hashed for the cache and rendered for the engine."""

import re
import unicodedata

# General category Cc. Unicode's stability policy guarantees that it never changes.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]+")


def canonicalize(text: str | None) -> str:
    """Return the text in Unicode NFC, trimmed, without control characters, and with single spaces for white space.

    Format characters (category Cf, such as zero-width joiners and bidi marks) stay: emoji and many scripts need them.
    Source: UAX #15 (normalisation forms), UAX #44 (general category Cc).
    """
    if not text:
        return ""
    # White space first: tab and newline are control characters, but they separate words.
    collapsed = _collapse(text)
    if not _CONTROL.search(collapsed):
        return collapsed
    # The character may have been between two spaces, or between a letter and its combining mark.
    return _collapse(_CONTROL.sub("", collapsed))


def _collapse(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())
