"""The log: one line an event, for people or for machines, with the request's id in it.

Prompts and outputs are logged at debug only; nothing here looks at them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Generator
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from headstock.observe.steady import SteadyStream

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["text", "json"]

OURS = "headstock"

_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "request_id"}
_ESCAPES = str.maketrans({"\n": "\\n", "\r": "\\r", "\x1b": "\\x1b"})


def set_up_logging(
    level: Level = "info", format: Format = "text", stream: TextIO | None = None
) -> None:
    """Write the log of this process to ``stream``, standard error by default.

    A stream that cannot be written to loses lines, and nothing else comes of it. Packages other
    than ours are heard from ``warning`` on. Calling it again replaces the set-up.
    """
    handler = logging.StreamHandler(SteadyStream(stream or sys.stderr))
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    handler.addFilter(_add_request_id)
    handler.addFilter(_is_ours_or_serious)
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())


def log_request_as(request_id: str) -> None:
    """Put ``request_id`` into every line that this task, which serves one request, logs."""
    _request_id.set(request_id)


@contextlib.contextmanager
def request_logged_as(request_id: str) -> Generator[None]:
    """Put ``request_id`` into every line that this task logs within the block."""
    token = _request_id.set(request_id)
    try:
        yield
    finally:
        _request_id.reset(token)


class TextFormatter(logging.Formatter):
    """``10:31:07.250 INFO    server.http [chatcmpl-1] message``; a message cannot forge a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and a traceback below it when there is one."""
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        name = record.name.removeprefix(f"{OURS}.")
        request_id = getattr(record, "request_id", None)
        subject = f" [{request_id.translate(_ESCAPES)}]" if request_id else ""
        message = record.getMessage().translate(_ESCAPES)
        line = f"{time} {record.levelname:<7} {name}{subject} {message}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One object a line: UTC time, level, logger, message, request id, and what was ``extra``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object as a line."""
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := getattr(record, "request_id", None):
            fields["request_id"] = request_id
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        extra = {k: v for k, v in vars(record).items() if k not in _STANDARD}
        return json.dumps({**extra, **fields}, default=str, ensure_ascii=False)


def _add_request_id(record: logging.LogRecord) -> bool:
    """Fill in the id of the task's request, unless the caller gave one as ``extra``."""
    if getattr(record, "request_id", None) is None:
        record.request_id = _request_id.get()
    return True


def _is_ours_or_serious(record: logging.LogRecord) -> bool:
    return record.name.startswith(OURS) or record.levelno >= logging.WARNING
