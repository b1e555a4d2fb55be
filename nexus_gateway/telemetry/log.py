"""Logging: one line an event, as text or as JSON, on stderr, with every known secret masked."""

from __future__ import annotations

import json
import logging
import re
import time
import traceback
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

from nexus_gateway.proxy.record import MAX_WHY, RequestRecord
from nexus_gateway.secret import SHORTEST_SECRET, Secret

logger = logging.getLogger("nexus_gateway")

MAX_VALUE = 200
MAX_TRACE_LINE = 300
TRACE_EVERY_S = 60.0
_ExcInfo = tuple[type[BaseException] | None, BaseException | None, TracebackType | None]
_PLAIN = re.compile(r"[\w.,:/#@+-]+")


def log_request(record: RequestRecord) -> None:
    """Log the line of a request that has ended (a `record.Observer`)."""
    if not logger.isEnabledFor(logging.INFO):
        return
    fields: dict[str, object] = {"id": record.id or None}
    if record.trace_id:
        fields["trace_id"] = record.trace_id
    fields |= {
        "caller": record.caller or None,
        "status": record.status,
        "instance": record.instance or None,
        "asked": record.asked_model,
        "model": record.model or None,
        "policy": record.policy or None,
        "attempts": record.begun,
        "resumed": record.resumed or None,
        "first_ms": round(record.first_ms) if record.began else None,
        "ms": round(record.total_ms),
        "tokens": record.tokens.completion or 0,
        "outcome": record.outcome,
        "why": record.why,
    }
    line = logger.makeRecord(
        logger.name, logging.INFO, "", 0, record.endpoint, (), None, extra={"fields": fields}
    )
    line.created = record.ended_s
    logger.handle(line)


class LineFormatter(logging.Formatter):
    """Formats a log record as one line of text or JSON, and masks the secrets in it."""

    def __init__(self, style: str, secrets: Iterable[Secret]) -> None:
        super().__init__()
        self._is_json = style == "json"
        self._write = _json_line if self._is_json else _text_line
        known = sorted({s.reveal() for s in secrets if len(s.reveal()) >= SHORTEST_SECRET}, key=len)
        pattern = "|".join(re.escape(text) for text in reversed(known))
        self._known = re.compile(pattern) if pattern else None
        self._traced_s: dict[str, float] = {}  # when a traceback was written, by its last line

    def format(self, record: logging.LogRecord) -> str:
        """Format a record; a traceback follows the text on lines of its own, indented.

        Of exceptions that were raised at the same line one a minute has its traceback.

        Secrets are masked before anything is cut or escaped, and once more afterwards.
        """
        fields: dict[str, Any] = getattr(record, "fields", {})
        shown = {k: self._cut(k, v) if type(v) is str else v for k, v in fields.items()}
        trace = ""
        if record.exc_info:
            raised = _raised(record.exc_info)
            if self._is_news(raised, record.created):
                trace = _indented(self._mask(self.formatException(record.exc_info)))
            else:
                shown["exception"] = raised
        if trace and self._is_json:
            shown["exception"] = trace
        message = self._mask(record.getMessage())
        line = self._mask(self._write(record.created, record.levelname.lower(), message, shown))
        return f"{line}\n{trace}" if trace and not self._is_json else line

    def _is_news(self, raised: str, now_s: float) -> bool:
        """Whether to write a traceback: what an upstream sends must not fill the log with them."""
        if now_s - self._traced_s.get(raised, float("-inf")) < TRACE_EVERY_S:
            return False
        self._traced_s[raised] = now_s
        return True

    def _cut(self, name: str, text: str) -> str:
        return self._mask(text)[: MAX_WHY if name == "why" else MAX_VALUE]

    def _mask(self, text: str) -> str:
        return self._known.sub("***", text) if self._known else text


def _text_line(created_s: float, level: str, message: str, fields: Mapping[str, Any]) -> str:
    """`12:00:00 info    chat  id=req-1 status=200 …`"""
    pairs = [f"{name}={_text(value)}" for name, value in fields.items() if value is not None]
    at = _time("%H:%M:%S", int(created_s))
    words = _printable(" ".join(message.split()))
    return f"{at} {level:7} {words}  {' '.join(pairs)}".rstrip()


def _json_line(created_s: float, level: str, message: str, fields: Mapping[str, Any]) -> str:
    at = _time("%Y-%m-%dT%H:%M:%S%z", int(created_s))
    return json.dumps({"time": at, "level": level, "message": message, **fields})


@lru_cache(maxsize=4)
def _time(form: str, second: int) -> str:
    return time.strftime(form, time.localtime(second))


def _text(value: object) -> str:
    if type(value) is int:
        return str(value)
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def _printable(text: str) -> str:
    """Escape control characters: they could command a terminal, or forge a line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _indented(text: str) -> str:
    """Indent a traceback, so that no line of an exception's text looks like a line of the log."""
    return "\n".join(f"    {_printable(line)[:MAX_TRACE_LINE]}" for line in text.splitlines())


def _raised(exc_info: _ExcInfo) -> str:
    """`KeyError in stream.py:42`"""
    kind, _, trace = exc_info
    name = kind.__name__ if kind else "no exception"
    if trace is None:
        return name
    (last,) = traceback.extract_tb(trace, limit=-1)
    return f"{name} in {Path(last.filename).name}:{last.lineno}"


def _is_not_bad_http(record: logging.LogRecord) -> bool:
    """Leave out aiohttp's tracebacks of what was not HTTP: its refusal is logged as info."""
    error = record.exc_info[1] if record.exc_info else None
    return type(error).__module__ != "aiohttp.http_exceptions"


def configure(level: str, style: str, secrets: Iterable[Secret]) -> None:
    """Set up logging for the process; again while it serves, after a reload."""
    logging.raiseExceptions = False  # a closed or full stderr must not fail requests
    # What no line shows need not be looked up (Python's Logging HOWTO, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter(style, secrets))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("aiohttp.server").filters[:] = [_is_not_bad_http]
    logger.setLevel(level.upper())
