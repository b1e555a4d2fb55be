"""Logging: one line for each thing that happened, as text or as JSON, on stderr."""

from __future__ import annotations

import copy
import json
import logging
import re
from collections.abc import Iterable
from typing import Any

from nexus_gateway.secret import SHORTEST_SECRET, Secret

LONGEST_VALUE = 200
_PLAIN = re.compile(r"[\w.,:/#@+-]+")


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    found: dict[str, Any] = getattr(record, "fields", {})
    return {k: v[:LONGEST_VALUE] if isinstance(v, str) else v for k, v in found.items()}


class TextFormatter(logging.Formatter):
    """`12:00:00 info    chat  id=req-1 status=200 …`"""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record as one line (a traceback follows on more)."""
        fields = [
            f"{name}={_shown(value)}"
            for name, value in _fields(record).items()
            if value is not None
        ]
        time = self.formatTime(record, "%H:%M:%S")
        message = " ".join(record.getMessage().split())
        line = "  ".join([f"{time} {record.levelname.lower():7} {message}", *[" ".join(fields)]])
        trace = f"\n{self.formatException(record.exc_info)}" if record.exc_info else ""
        return line.rstrip() + trace


def _shown(value: object) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


class JSONFormatter(logging.Formatter):
    """One JSON object a line: `time`, `level`, `message`, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record as one line."""
        line: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


class Redactor(logging.Formatter):
    """A second net: whatever another formatter writes, no known secret is in it."""

    def __init__(self, inner: logging.Formatter, secrets: Iterable[Secret]) -> None:
        super().__init__()
        self._inner = inner
        known = sorted({s.reveal() for s in secrets if len(s.reveal()) >= SHORTEST_SECRET}, key=len)
        pattern = "|".join(re.escape(text) for text in reversed(known))
        self._known = re.compile(pattern) if pattern else None

    def format(self, record: logging.LogRecord) -> str:
        """Write a record with every secret replaced by `***`.

        Before the inner formatter cuts or escapes anything, and once more after it.
        """
        masked = copy.copy(record)
        masked.msg, masked.args = self._mask(record.getMessage()), ()
        fields: dict[str, Any] = getattr(record, "fields", {})
        masked.fields = {k: self._mask(v) if isinstance(v, str) else v for k, v in fields.items()}
        return self._mask(self._inner.format(masked))

    def _mask(self, text: str) -> str:
        return self._known.sub("***", text) if self._known else text


def _without_callers_faults(record: logging.LogRecord) -> bool:
    """Leave out the traceback where somebody sent something that is not HTTP."""
    error = record.exc_info[1] if record.exc_info else None
    if type(error).__module__ == "aiohttp.http_exceptions":
        record.exc_info = None
        record.msg = f"refused something that is not HTTP ({type(error).__name__})"
        record.args = ()
    return True


def configure(level: str, style: str, secrets: Iterable[Secret]) -> None:
    """Set up logging for the process.

    Args:
        level: debug, info, warning or error.
        style: text or json.
        secrets: what must never be written.
    """
    logging.raiseExceptions = False  # a closed or full stderr must not take requests down
    handler = logging.StreamHandler()
    inner = JSONFormatter() if style == "json" else TextFormatter()
    handler.setFormatter(Redactor(inner, secrets))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("aiohttp.server").filters[:] = [_without_callers_faults]
    logging.getLogger("nexus_gateway").setLevel(level.upper())
