"""Exceptions that nobody foresaw, in the log: where and of which type, without their text, which may hold a query's or a note's."""

import logging


class Unforeseen(Exception):
    """Stands for another exception: has its frames, and its type as text."""


def log_unforeseen(
    logger: logging.Logger, event: str, error: BaseException, *, log_texts: bool = False
) -> None:
    """Log the event as an error, with the exception's type and frames; with its text only where texts may be logged."""
    shown = error if log_texts else without_text(error)
    logger.error(event, extra={"error": type(error).__name__}, exc_info=shown)


def without_text(error: BaseException) -> Unforeseen:
    """The same exception, and what it came of, as it may be logged: libraries quote what they were given."""
    outer, *inner = _chain(error)
    shown = last = _bare(outer)
    for cause in inner:
        last.__cause__ = _bare(cause)
        last = last.__cause__
    return shown


def _chain(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and not any(at is known for known in chain):  # which may go in a circle
        chain.append(at)
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)
    return chain


def _bare(error: BaseException) -> Unforeseen:
    return Unforeseen(type(error).__name__).with_traceback(error.__traceback__)
