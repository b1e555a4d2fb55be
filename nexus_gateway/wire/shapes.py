"""Proof without parsing that an event means the same as one that was parsed.

Events of a stream differ in a few strings and numbers: the text, an id, a time, a padding. An
event's *shape* is its bytes with a hole in place of each of these. What decides how an event is
read is no hole: names, brackets, literals, and the values of the names in `_DECISIVE`. So an event
that fits a shape is JSON, and neither an error nor a finish unless the parsed one was.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

# The inside of a JSON string, but for its UTF-8. Surrogates are left to the parser. Possessive, as
# all patterns that read an upstream's bytes are: backtracking needs memory.
TEXT = rb'(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u(?![dD][89a-fA-F])[0-9a-fA-F]{4}))*+'
_STRING = b'"' + TEXT + b'"'
_NUMBER = rb"-?(?:0|[1-9][0-9]{0,17}+)(?:\.[0-9]{1,30}+)?+(?:[eE][-+]?[0-9]{1,2}+)?+"
# A string and the colon behind it if it is a name, or a number.
_TOKEN = re.compile(rb'("(?:[^"\\]++|\\.)*+")(\s*+:)?+|-?[0-9][0-9.eE+-]*+')
_DECISIVE = frozenset(
    {b'"%b"' % name for name in b"choices error finish_reason index model object type".split()}
)
# A longer event, or one with more holes, costs more to compile than its likes cost to parse.
LONGEST = 4096
MOST_HOLES = 64
_END = b"\n\n"


def is_utf8(data: bytes) -> bool:
    return valid_utf8(data) == len(data)


def valid_utf8(data: bytes) -> int:
    """Return how many bytes from the beginning are UTF-8."""
    if not data.isascii():
        try:
            data.decode()
        except UnicodeDecodeError as error:
            return error.start
    return len(data)


@dataclass(frozen=True, slots=True)
class EventShape:
    """The shape of one event; in each event that fits, `old` is to be replaced by `new`."""

    _run: re.Pattern[bytes]
    old: bytes
    new: bytes
    has_usage: bool

    @classmethod
    def from_event(
        cls, event: bytes, old: bytes = b"", new: bytes = b"", *, has_usage: bool = False
    ) -> EventShape | None:
        """Return the shape of an event without its empty line, whose data is one line of JSON.

        None if it has none that is worth it. `old` contains the name of a value that decides.
        """
        if len(event) > LONGEST or (old and event.count(old) != 1):
            return None
        pattern: list[bytes] = []
        at, holes, name = event.index(b"{"), 0, b""
        pattern.append(re.escape(event[:at]))
        for token in _TOKEN.finditer(event, at):
            value, is_name = token[1] or b"", token[2]
            if is_name:
                if b"\\" in value:
                    return None  # it may be one of those that decide
                name = value
                continue
            if name not in _DECISIVE:
                hole = _STRING if value else _NUMBER
                pattern += re.escape(event[at : token.start()]), hole
                at, holes = token.end(), holes + 1
                if holes > MOST_HOLES:
                    return None
            name = b""
        pattern.append(re.escape(event[at:]))
        return cls(_compiled(b"".join(pattern)), old, new, has_usage)

    def end_of_run(self, block: bytes, start: int) -> int:
        """Return the end of the events of this shape that begin at `start`; 0 if there are none."""
        match = self._run.match(block, start)
        if match is None:
            return 0
        run = match[0]
        valid = valid_utf8(run)
        if valid == len(run):
            return match.end()
        cut = run.rfind(_END, 0, valid)
        return start + cut + len(_END) if cut >= 0 else 0

    def renamed(self, run: bytes) -> bytes:
        return run.replace(self.old, self.new) if self.old else run


@lru_cache(maxsize=64)
def _compiled(event: bytes) -> re.Pattern[bytes]:
    """Return the pattern of one or more events; the streams of an upstream have the same shapes."""
    return re.compile(b"(?:" + event + _END + b")++")
