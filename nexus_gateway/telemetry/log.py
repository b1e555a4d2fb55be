"""Logging: one line an event, as text or as JSON, on stderr, with every known secret masked."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import time
import traceback
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from nexus_gateway.proxy.record import MAX_WHY, RequestRecord
from nexus_gateway.secret import SHORTEST_SECRET, Secret

logger = logging.getLogger("nexus_gateway")

MAX_VALUE = 200
MAX_TRACE_LINE = 300
TRACE_EVERY_S = 60.0
_LIMITS = {"why": MAX_WHY, "exception": 1_000_000}
_ExcInfo = tuple[type[BaseException] | None, BaseException | None, TracebackType | None]
_PLAIN = re.compile(r"[\w.,:/#@+-]+")


def log_request(record: RequestRecord) -> None:
    """Log the line of a request that has ended (a `record.Observer`)."""
    if not logger.isEnabledFor(logging.INFO):
        return
    fields = _fields_of(record)
    handlers = logging.getLogger().handlers
    if len(handlers) == 1 and isinstance(handlers[0], LineHandler):
        # Past the machinery of `logging`, which costs as much as all the rest of the line.
        handlers[0].hold(record, fields)
        return
    line = logger.makeRecord(
        logger.name, logging.INFO, "", 0, record.endpoint, (), None, extra={"fields": fields}
    )
    line.created = record.ended_s
    logger.handle(line)


def _fields_of(record: RequestRecord) -> dict[str, object]:
    fields: dict[str, object] = {"id": record.id or None}
    if record.trace_id:
        fields["trace_id"] = record.trace_id
    return fields | {
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


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes lines; those of requests wait for `flush`, to be written together."""

    def __init__(self, formatter: LineFormatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._lines = formatter
        self._held: list[str] = []

    def hold(self, record: RequestRecord, fields: Mapping[str, Any]) -> None:
        """Keep the line of a request for `flush`."""
        self._held.append(self._lines.line(record.ended_s, "info", record.endpoint, fields) + "\n")

    def emit(self, record: logging.LogRecord) -> None:
        self.flush()
        super().emit(record)

    def flush(self) -> None:
        held, self._held = self._held, []
        if held:
            with contextlib.suppress(OSError, ValueError):  # as in `emit`: it may be closed
                self.stream.write("".join(held))
        super().flush()


def flush() -> None:
    """Write the lines that wait."""
    for handler in logging.getLogger().handlers:
        handler.flush()


class LineFormatter(logging.Formatter):
    """Formats a log record as one line of text or JSON, and masks the secrets in it."""

    def __init__(self, style: str, secrets: Iterable[Secret]) -> None:
        super().__init__()
        self._is_json = style == "json"
        known = {s.reveal() for s in secrets if len(s.reveal()) >= SHORTEST_SECRET}
        self._known = sorted(known, key=len, reverse=True)
        self._any_known = re.compile("|".join(map(re.escape, self._known)))
        # Most values are the same in the lines of all requests.
        self._shown = lru_cache(maxsize=256)(self._text)
        self._traced_s: dict[str, float] = {}  # when a traceback was written, by its last line

    def format(self, record: logging.LogRecord) -> str:
        """Format a record; a traceback follows the text on lines of its own, indented.

        Of exceptions that were raised at the same line one a minute has its traceback.
        """
        fields: dict[str, Any] = getattr(record, "fields", {})
        trace = ""
        if record.exc_info:
            raised = _raised(record.exc_info)
            if self._is_news(raised, record.created):
                trace = _indented(self._mask(self.formatException(record.exc_info)))
            if not trace or self._is_json:
                fields = {**fields, "exception": trace or raised}
        level = record.levelname.lower()
        line = self.line(record.created, level, record.getMessage(), fields)
        return f"{line}\n{trace}" if trace and not self._is_json else line

    def line(self, at_s: float, level: str, message: str, fields: Mapping[str, Any]) -> str:
        """Return one line without its end.

        Secrets are masked before anything is cut or escaped, and once more afterwards.
        """
        write = self._json_line if self._is_json else self._text_line
        return self._mask(write(at_s, level, self._mask(message), fields))

    def _is_news(self, raised: str, now_s: float) -> bool:
        """Whether to write a traceback: what an upstream sends must not fill the log with them."""
        if now_s - self._traced_s.get(raised, float("-inf")) < TRACE_EVERY_S:
            return False
        self._traced_s[raised] = now_s
        return True

    def _text_line(self, at_s: float, level: str, message: str, fields: Mapping[str, Any]) -> str:
        """`12:00:00 info    chat  id=req-1 status=200 …`"""
        shown = self._shown
        pairs = [
            f"{name}={value if type(value) is int else shown(value)}"
            for name, value in fields.items()
            if value is not None and name != "why"
        ]
        if (why := fields.get("why")) is not None:
            pairs.append(f"why={self._text(why, MAX_WHY)}")
        at = _time("%H:%M:%S", int(at_s))
        return f"{at} {level:7} {_words(message)}  {' '.join(pairs)}".rstrip()

    def _text(self, value: object, limit: int = MAX_VALUE) -> str:
        text = self._mask(str(value))[:limit]
        return text if _PLAIN.fullmatch(text) else json.dumps(text)

    def _json_line(self, at_s: float, level: str, message: str, fields: Mapping[str, Any]) -> str:
        cut = {
            name: self._mask(value)[: _LIMITS.get(name, MAX_VALUE)] if type(value) is str else value
            for name, value in fields.items()
        }
        at = _time("%Y-%m-%dT%H:%M:%S%z", int(at_s))
        return json.dumps({"time": at, "level": level, "message": message, **cut})

    def _mask(self, text: str) -> str:
        for secret in self._known:  # cheaper than the pattern, and hardly ever found
            if secret in text:
                return self._any_known.sub("***", text)
        return text


@lru_cache(maxsize=4)
def _time(form: str, second: int) -> str:
    return time.strftime(form, time.localtime(second))


@lru_cache(maxsize=16)
def _words(message: str) -> str:
    return _printable(" ".join(message.split()))


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
    handler = LineHandler(LineFormatter(style, secrets))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("aiohttp.server").filters[:] = [_is_not_bad_http]
    logger.setLevel(level.upper())
