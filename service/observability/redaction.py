"""Log exceptions without their text, which may hold a query or a note: libraries quote what they were given."""

import logging


class RedactedError(Exception):
    """Stands for another exception in the log: it has that exception's frames, and its type's name as text."""


def log_redacted(
    logger: logging.Logger, event: str, error: BaseException, *, log_texts: bool = False
) -> None:
    """Log the event as an error, with the exception's type and frames; with its text only if `log_texts` allows it."""
    shown = error if log_texts else without_text(error)
    logger.error(event, extra={"error": type(error).__name__}, exc_info=shown)


def without_text(error: BaseException) -> RedactedError:
    """Copy the exception and its causes with their types and frames, but without their texts."""
    outer, *causes = _chain(error)
    redacted = last = _redact(outer)
    for cause in causes:
        last.__cause__ = _redact(cause)
        last = last.__cause__
    return redacted


def _chain(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and not any(at is known for known in chain):  # a chain of causes may be a circle
        chain.append(at)
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)
    return chain


def _redact(error: BaseException) -> RedactedError:
    return RedactedError(type(error).__name__).with_traceback(error.__traceback__)
