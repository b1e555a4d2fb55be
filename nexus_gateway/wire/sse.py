"""Server-sent events, on bytes.

The rules, by the WHATWG standard, "Server-sent events", 9.2.5 and 9.2.6: lines end in CRLF, LF or
CR and in nothing else (not in U+2028, which JSON may contain); an event ends at an empty line; a
byte order mark may come first; the `data:` lines of one event are joined by LF; one space after
the colon is ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nexus_gateway.errors import BrokenStream
from nexus_gateway.wire import json_codec

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
LONGEST_EVENT = 8 * 1024 * 1024
COPIED = 1024  # a longer beginning of an event is not copied again for each piece that arrives
_TOO_LARGE = "The upstream sent an event that is too large."
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its `event:` name and its data as text ("" and "" for a comment)."""

    name: str
    data: str


@dataclass(slots=True, eq=False, repr=False)
class Framer:
    """Cuts a byte stream into whole events, whatever its line ends and its packets are."""

    _rest: bytes | bytearray = b""
    _begun: bool = False
    _after_cr: bool = False

    @property
    def at_boundary(self) -> bool:
        """Whether nothing is buffered, and no LF may follow a CR that was read."""
        return not self._rest and self._begun and not self._after_cr

    def feed(self, data: bytes) -> bytes:
        """Return all events that are complete by now, with LF line ends, or b"".

        BrokenStream if one is larger than LONGEST_EVENT.
        """
        if b"\r" in data or self._after_cr:
            data = self._with_lf(data)
        if self._rest:
            if len(self._rest) <= COPIED:
                data = bytes(self._rest) + data
            elif not (data := self._extend(data)):
                return b""
        if not self._begun:
            if len(data) < len(_BOM) and _BOM.startswith(data):
                self._rest = data
                return b""
            self._begun = True
            data = data.removeprefix(_BOM)
        if len(data) > LONGEST_EVENT and max(map(len, data.split(b"\n\n"))) > LONGEST_EVENT:
            raise BrokenStream(_TOO_LARGE)
        cut = data.rfind(b"\n\n") + 2
        if cut == 1:
            cut = 0
        self._rest = data[cut:]
        if len(self._rest) > COPIED:
            self._rest = bytearray(self._rest)
            self._extend(b"")
        return data[:cut]

    def _extend(self, data: bytes) -> bytes:
        """Append to a long event in place; return all of it once it has ended."""
        rest = self._rest
        assert isinstance(rest, bytearray)
        ended = b"\n\n" in rest[-1:] + data
        rest += data
        if ended:
            return bytes(rest)
        if len(rest) - rest.endswith(b"\n") > LONGEST_EVENT:
            raise BrokenStream(_TOO_LARGE)
        return b""

    def rest(self) -> bytes:
        """Return and drop what follows the last whole event."""
        rest, self._rest = bytes(self._rest), b""
        return rest

    def _with_lf(self, data: bytes) -> bytes:
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
            self._after_cr = False
        if data:
            self._after_cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def split(block: bytes) -> Iterator[bytes]:
    """Yield the events of a block one by one, without their empty lines."""
    for event in block.split(b"\n\n"):
        event = event.strip(b"\n")
        if event:
            yield event


def parse_event(event: bytes) -> Event:
    """Read the fields of one event, as `split` yields it."""
    name, data = b"", []
    for line in event.split(b"\n"):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
    return Event(name.decode("utf-8", "replace"), b"\n".join(data).decode("utf-8", "replace"))


def comment_lines(event: bytes) -> bytes:
    """Return the part of an event without data that may be sent: its comments, or b"".

    The official clients take a lone `retry:`, `id:` or `event:` line for a chunk and fail on it.
    """
    comments = [line for line in event.split(b"\n") if line.startswith(b":") and line != b":"]
    return b"\n".join(comments) + b"\n\n" if comments else b""


def frame(data: bytes) -> bytes:
    """Make an event of one line of JSON."""
    return b"data: " + data + b"\n\n"


def json_event(value: Any, name: str = "") -> bytes:
    """Make an event of a JSON value, with an `event:` line if it has a name."""
    event = frame(json_codec.dumps(value))
    return f"event: {name}\n".encode() + event if name else event
