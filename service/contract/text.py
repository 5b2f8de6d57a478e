"""Canonical text: the one form that is hashed for the cache and rendered for the engine."""

import unicodedata


def canonicalize(text: str | None) -> str:
    """The text in Unicode NFC, control characters dropped, white space collapsed to single blanks and trimmed.

    Format characters (category Cf: zero-width joiners, bidi marks) stay: emoji and many scripts need them.
    Source: UAX #15 (normalisation forms), UAX #44 (general category Cc).
    """
    if not text:
        return ""
    # White space goes first: tab and newline are control characters too, but they separate words.
    collapsed = " ".join(unicodedata.normalize("NFC", text).split())
    if collapsed.isprintable():
        return collapsed
    # A control character can have stood alone between two blanks, or between a letter and its combining mark.
    kept = "".join(c for c in collapsed if unicodedata.category(c) != "Cc")
    return " ".join(unicodedata.normalize("NFC", kept).split())
