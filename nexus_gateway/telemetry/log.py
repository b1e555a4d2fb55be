"""Logging: one line for each thing that happened, as text or as JSON, on stderr.

A line for each request is the gateway's own work, so it is made with care for what it costs: what
nobody reads is not looked up, the time is written once a second, and while the server runs, lines
below a warning wait a moment and go out together.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

from nexus_gateway.proxy.record import LONGEST_WHY
from nexus_gateway.secret import SHORTEST_SECRET, Secret

LONGEST_VALUE = 200
LONGEST_TRACE_LINE = 300
HELD_S = 0.1
MOST_HELD = 200
_PLAIN = re.compile(r"[\w.,:/#@+-]+")
Later = Callable[[float, Callable[[], None]], object]


@lru_cache(maxsize=4)
def _time(form: str, second: int) -> str:
    return time.strftime(form, time.localtime(second))


def _text(created_s: float, level: str, message: str, fields: Mapping[str, Any]) -> str:
    """`12:00:00 info    chat  id=req-1 status=200 …`"""
    shown = [f"{name}={_shown(v)}" for name, v in fields.items() if v is not None]
    at = _time("%H:%M:%S", int(created_s))
    said = _printable(" ".join(message.split()))
    return f"{at} {level:7} {said}  {' '.join(shown)}".rstrip()


def _printable(text: str) -> str:
    """Escape what is no character to read: it could command a terminal, or forge a line."""
    if text.isprintable():
        return text
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "".join(shown)


def _trace(text: str) -> str:
    """Indent a traceback, so that no line of what an exception says looks like one of the log's."""
    return "\n".join(f"    {_printable(line)[:LONGEST_TRACE_LINE]}" for line in text.splitlines())


def _shown(value: object) -> str:
    if type(value) is int:
        return str(value)
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def _object(created_s: float, level: str, message: str, fields: Mapping[str, Any]) -> str:
    """One JSON object: `time`, `level`, `message`, then the fields."""
    at = _time("%Y-%m-%dT%H:%M:%S%z", int(created_s))
    return json.dumps({"time": at, "level": level, "message": message, **fields})


class _Whole(str):
    """A text that is not cut."""


class LineFormatter(logging.Formatter):
    """Writes a record as one line, with every known secret masked.

    Args:
        style: text or json.
        secrets: what must never be written.
    """

    def __init__(self, style: str, secrets: Iterable[Secret]) -> None:
        super().__init__()
        self._is_json = style == "json"
        self._write = _object if self._is_json else _text
        known = sorted({s.reveal() for s in secrets if len(s.reveal()) >= SHORTEST_SECRET}, key=len)
        pattern = "|".join(re.escape(text) for text in reversed(known))
        self._known = re.compile(pattern) if pattern else None

    def format(self, record: logging.LogRecord) -> str:
        """Write a record; a traceback follows the text on lines of its own, indented.

        Secrets are masked before anything is cut or escaped, and once more after it.
        """
        fields: dict[str, Any] = getattr(record, "fields", {})
        masked = self._mask(self.formatException(record.exc_info)) if record.exc_info else ""
        trace = _trace(masked)
        if trace and self._is_json:
            fields = {**fields, "exception": _Whole(trace)}
        level = record.levelname.lower()
        line = self.line(record.created, level, record.getMessage(), fields)
        return f"{line}\n{trace}" if trace and not self._is_json else line

    def line(self, created_s: float, level: str, message: str, fields: Mapping[str, Any]) -> str:
        """Write what happened as one line.

        Args:
            created_s: when, in Unix seconds.
            level: in small letters.
            message: what.
            fields: with what; None is left out of text.
        """
        shown = {k: self._cut(k, v) if type(v) is str else v for k, v in fields.items()}
        return self._mask(self._write(created_s, level, self._mask(message), shown))

    def _cut(self, name: str, text: str) -> str:
        return self._mask(text)[: LONGEST_WHY if name == "why" else LONGEST_VALUE]

    def _mask(self, text: str) -> str:
        return self._known.sub("***", text) if self._known else text


class LineHandler(logging.StreamHandler[Any]):
    """Writes lines; where `later` is set, those below a warning wait for others."""

    later: Later | None = None

    def __init__(self) -> None:
        super().__init__()
        self._lines: list[str] = []
        self._guard = threading.RLock()
        self.lock = self._guard
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, at once or soon."""
        try:
            self._keep(self.format(record), patient=record.levelno < logging.WARNING)
        except Exception:
            self.handleError(record)

    def write(self, message: str, fields: Mapping[str, Any]) -> None:
        """Write a line of the level info without a record."""
        assert isinstance(self.formatter, LineFormatter)
        with self._guard:
            self._keep(self.formatter.line(time.time(), "info", message, fields), patient=True)

    def _keep(self, line: str, *, patient: bool) -> None:
        self._lines.append(line + self.terminator)
        held = len(self._lines)
        patient = patient and held < MOST_HELD and threading.get_ident() == self._thread
        if self.later is None or not patient:
            self.flush()
        elif held == 1:
            self.later(HELD_S, self.flush)

    def flush(self) -> None:
        """Write what waits."""
        with self._guard:
            lines, self._lines = self._lines, []
            try:
                if lines:
                    self.stream.write("".join(lines))
                self.stream.flush()
            except (OSError, ValueError):
                pass  # nobody reads any more: no reason not to serve


def info_line(logger: logging.Logger, message: str, fields: Mapping[str, Any]) -> None:
    """Write a line of the level info; the short way where nobody but our handler listens.

    The long way through `logging` costs as much as choosing an instance, for every request.
    """
    if not logger.isEnabledFor(logging.INFO):
        return
    handlers = logging.root.handlers
    if len(handlers) == 1 and isinstance(handlers[0], LineHandler) and not logger.handlers:
        handlers[0].write(message, fields)
    else:
        logger.info("%s", message, extra={"fields": fields})


def buffer(later: Later | None) -> None:
    """Let lines wait and go out together, or no more.

    Args:
        later: calls something after so many seconds, in this thread; None to write at once.
    """
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LineHandler):
            handler.later = later
            handler.flush()


def _without_callers_faults(record: logging.LogRecord) -> bool:
    """Leave out that somebody sent something that is not HTTP: who answers it says so, as info."""
    error = record.exc_info[1] if record.exc_info else None
    return type(error).__module__ != "aiohttp.http_exceptions"


def configure(level: str, style: str, secrets: Iterable[Secret]) -> None:
    """Set up logging for the process, or do it anew while it serves.

    Args:
        level: debug, info, warning or error.
        style: text or json.
        secrets: what must never be written.
    """
    logging.raiseExceptions = False  # a closed or full stderr must not take requests down
    # What no line shows need not be looked up (Python's Logging HOWTO, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    handler = LineHandler()
    handler.setFormatter(LineFormatter(style, secrets))
    root = logging.getLogger()
    for old in root.handlers:
        if isinstance(old, LineHandler):
            old.flush()
            handler.later = old.later
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("aiohttp.server").filters[:] = [_without_callers_faults]
    logging.getLogger("nexus_gateway").setLevel(level.upper())
