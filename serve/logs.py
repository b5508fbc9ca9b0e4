"""One line for each request and event on standard output: JSON for machines, or text for people.

No line holds a key, a cookie or a body. Of what was searched for, the first characters are there, to find out why a
search was slow or failed.
"""

from __future__ import annotations

import datetime
import json
import logging
import sys
from typing import Any

from eao.serve.settings import LogFormat

SHOWN = 64
"""Characters of a query that are written."""

log = logging.getLogger("eao.serve")


def set_up_logs(log_format: LogFormat) -> None:
    """Write everything that is logged in this process to standard output, one line each."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_JsonLines() if log_format == "json" else _TextLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    log.setLevel(logging.INFO)


def event(name: str, **facts: Any) -> None:
    """Log that something happened."""
    log.info(name, extra={"facts": facts})


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {"time": _time(record), "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "facts", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class _TextLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        facts = " ".join(f"{name}={_shown(value)}" for name, value in getattr(record, "facts", {}).items())
        mark = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        line = f"{_time(record)} {mark}{_one_line(record.getMessage())} {facts}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _time(record: logging.LogRecord) -> str:
    return datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")


def _shown(value: Any) -> str:
    return json.dumps(value) if isinstance(value, str) and not value.isalnum() else str(value)


def _one_line(text: str) -> str:
    # What a client sent must not look like a line of its own.
    return text.replace("\r", " ").replace("\n", " ")
