"""Structured logs: one event a line with the request's id. Queries and notes are left out unless a setting allows them."""

import io
import logging
import sys
import time

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from service.observability.request_context import current_request

# Attributes that libraries add to records for their own formatters: uvicorn the message in colours, vLLM (through a
# record factory, so to every record of the process) the name of the process.
FOREIGN_EXTRAS = ("color_message", "vllm_process_name")
# Our own event says more than uvicorn's access line, and httpx logs each call to other services.
CHATTY_LOGGERS = ("httpx", "httpcore", "uvicorn.access")


class _AddRequestId(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = current_request.get().request_id
        return True


class _TextFormatter(logging.Formatter):
    """Writes `time level logger: event key=value ...`, for people at a terminal."""

    _standard = frozenset((*vars(logging.makeLogRecord({})), "message", "asctime", *FOREIGN_EXTRAS))

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        extras = [f"{k}={v}" for k, v in vars(record).items() if k not in self._standard and v is not None]
        head, *rest = line.split("\n", 1)
        return "\n".join([" ".join([head, *extras]), *rest])


class _UtcJsonFormatter(JsonFormatter):
    # UTC to the millisecond, because logs of several machines are read together.
    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"


def configure_logs(level: str, log_format: str) -> None:
    """Send every logger of the process to stderr in one format. Call it once, at the start of a command.

    `log_format` is `json`, `text`, or `auto`: text if stderr is a terminal.
    """
    in_json = log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_AddRequestId())
    handler.setFormatter(_json_formatter() if in_json else _text_formatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in CHATTY_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)


def unbuffer_stderr() -> None:
    """Write to stderr without a buffer, as `python -u` does; call it before anything keeps a reference to stderr.

    On a full disk a buffer keeps the line that failed, and every later flush raises. multiprocessing flushes stderr before
    it starts a process, so the engine would not start.
    """
    if sys.stderr is sys.__stderr__ and sys.stderr is not None:
        raw = io.FileIO(sys.stderr.fileno(), "wb", closefd=False)
        sys.stderr = io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", write_through=True)


def _json_formatter() -> logging.Formatter:
    return _UtcJsonFormatter(
        "%(asctime)s %(levelname)s %(name)s %(message)s",
        rename_fields={"asctime": "time", "levelname": "level", "name": "logger", "message": "event"},
        reserved_attrs=[*RESERVED_ATTRS, *FOREIGN_EXTRAS],
        json_ensure_ascii=False,
    )


def _text_formatter() -> logging.Formatter:
    return _TextFormatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S")
