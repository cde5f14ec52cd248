"""Logging to standard error, one line a record, as text or as JSON."""

from __future__ import annotations

import json
import logging
import sys
import time

from vmdriver.host.log_context import at
from vmdriver.host.visible import visible

LEVELS = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "off": logging.CRITICAL,
}
"""The gateway's level names; `error,openshell=debug` style filters are reduced to their
first word.
"""


class _Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__(
            "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s",
            "%Y-%m-%dT%H:%M:%S",
        )

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        return time.strftime(datefmt or "%FT%T", time.gmtime(record.created))

    def format(self, record: logging.LogRecord) -> str:
        # A guest or a request must not be able to forge a second log line.
        # Nor do its words do anything to the terminal of whoever reads it.
        return visible(super().format(record), "\n" if record.exc_info else "")


class _Json(logging.Formatter):
    """What a record is about is said where it is known: sandbox, trace, step, extension."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry = {
            "time": f"{seconds}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        now = at()
        about = {
            "sandbox": now.sandbox or getattr(record, "sandbox", ""),
            "trace": now.trace,
            "step": now.step,
            "extension": getattr(record, "extension", ""),
        }
        entry |= {name: value for name, value in about.items() if value}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def parse_level(name: str) -> int:
    """Level for a name as the gateway passes it, or ValueError."""
    word = name.split(",", maxsplit=1)[0].rpartition("=")[2].strip().lower()
    if word not in LEVELS:
        raise ValueError(f"{name!r} is none of {', '.join(LEVELS)}")
    return LEVELS[word]


def set_up(level: str, style: str = "text") -> None:
    """Send every record of that level or above to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if style == "json" else _Text())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(parse_level(level), logging.INFO))
    logging.getLogger("vmdriver").setLevel(parse_level(level))
    logging.getLogger("pyroute2").setLevel(logging.WARNING)
