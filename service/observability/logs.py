"""Structured logs: one event a line, with the request's id; never a query or a note, unless a setting says so."""

import contextvars
import logging
import sys
import time

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

request_id_var: contextvars.ContextVar[str | None] = contextvars.ContextVar("request_id", default=None)


# What libraries put on records for formatters of their own: uvicorn the message in colours, vLLM (through a record
# factory, so on every record of the process) the name of the process.
FOREIGN_EXTRAS = ("color_message", "vllm_process_name")


class _AddRequestId(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id_var.get()
        return True


class _TextFormatter(logging.Formatter):
    """`time level logger: event key=value ...`, for people at a terminal."""

    _standard = frozenset((*vars(logging.makeLogRecord({})), "message", "asctime", *FOREIGN_EXTRAS))

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        extras = [f"{k}={v}" for k, v in vars(record).items() if k not in self._standard and v is not None]
        head, *rest = line.split("\n", 1)
        return "\n".join([" ".join([head, *extras]), *rest])


class _UtcJsonFormatter(JsonFormatter):
    # Logs of several machines are read together: one clock, to the millisecond.
    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"


def configure_logs(level: str, log_format: str) -> None:
    """Send every logger of the process to stderr in one format. Call once, at the start of a command.

    `log_format` is `json`, `text`, or `auto`: text when stderr is a terminal.
    """
    in_json = log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_AddRequestId())
    handler.setFormatter(_json_formatter() if in_json else _text_formatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for chatty in (
        "httpx",
        "httpcore",
        "uvicorn.access",
    ):  # our own event says more than uvicorn's access line
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _json_formatter() -> logging.Formatter:
    return _UtcJsonFormatter(
        "%(asctime)s %(levelname)s %(name)s %(message)s",
        rename_fields={"asctime": "time", "levelname": "level", "name": "logger", "message": "event"},
        reserved_attrs=[*RESERVED_ATTRS, *FOREIGN_EXTRAS],
        json_ensure_ascii=False,
    )


def _text_formatter() -> logging.Formatter:
    return _TextFormatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S")
