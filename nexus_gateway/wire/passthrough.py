"""Streams that are forwarded unchanged, and checked for their beginning, their end and errors.

`Passthrough` is what all of them share. `chat_passthrough` is its form for OpenAI's chunks,
`EventPassthrough` the form for a dialect of named events: once the answer has begun, blocks that
contain none of the dialect's markers are forwarded unread.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from enum import Enum
from typing import Any, ClassVar

from nexus_gateway.errors import BrokenStream, TruncatedStream
from nexus_gateway.wire import json_codec, sse
from nexus_gateway.wire.usage import counted


class EventKind(Enum):
    """What an event means for the answer."""

    NOTHING = "nothing"
    CONTENT = "content"
    END = "end"


class Passthrough(ABC):
    """One stream: whole events, held back until the first one with content.

    Until then the upstream can fail and another one can be tried, unnoticed by the caller.

    Attributes:
        started: content was seen; what `feed` returns may be sent.
        done: the answer is complete.
        broken: the error in the middle of a block whose events before it were returned.
        usage: the upstream's usage, in OpenAI's shape; None as long as it is unknown.
    """

    def __init__(self) -> None:
        self.started = False
        self.done = False
        self.broken: BrokenStream | None = None
        self.usage: dict[str, Any] | None = None
        self._framer = sse.Framer()
        self._held: list[bytes] = []
        self._held_size = 0
        self._learnt = 0  # grows with each event that may help `_fast_path` with the next ones

    @abstractmethod
    def used(self) -> Mapping[str, Any]:
        """Return the usage: the upstream's, else the events with content counted as tokens."""

    @abstractmethod
    def _fast_path(self, block: bytes) -> bytes | None:
        """Pass a block unread if a few scans prove that it is plain; else return None."""

    @abstractmethod
    def _pass_one(self, event: bytes) -> bytes:
        """Examine one event; return what may be sent. BrokenStream if it is not an answer."""

    @abstractmethod
    def _ended_early(self, late: bytes) -> bytes:
        """Handle a body that ends before the answer does; `late` are its last events."""

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the upstream; return what may be sent to the caller, or b"".

        Raises:
            BrokenStream: an event that is not JSON, an error event, or one that is too large.
        """
        block = self._framer.feed(data)
        if not block or self.done or self.broken is not None:
            return b""
        passed = self._fast_path(block) if self.started else None
        return self._slow_path(block) if passed is None else passed

    def _slow_path(self, block: bytes) -> bytes:
        """Examine a block event by event."""
        was_started = self.started
        out: list[bytes] = []
        at = 0
        while at < len(block):
            end = block.find(b"\n\n", at)
            end = len(block) if end < 0 else end  # an odd line end may be left at the end
            event, at = block[at:end].strip(b"\n"), end + 2
            if not event:
                continue
            learnt = self._learnt
            try:
                out.append(self._pass_one(event))
            except BrokenStream as broken:
                # If nothing was sent yet, another upstream may answer; else keep what is good.
                if not was_started:
                    raise
                self.broken = broken
                break
            if self.done:
                break
            if self.started and learnt != self._learnt:
                # After a burst the rest is in this block as well, and mostly plain.
                rest = self._fast_path(block[at:])
                if rest is not None:
                    out.append(rest)
                    break
        return b"".join(out)

    def _hold(self, event: bytes) -> bytes:
        """Hold an event back until the answer begins; return what may be sent."""
        if self.started:
            held, self._held = self._held, []
            return b"".join(held) + event
        self._held.append(event)
        self._held_size += len(event)
        if self._held_size > sse.LONGEST_EVENT:
            raise BrokenStream("The upstream sent too much before its answer began.")
        return b""

    def _parse(self, text: bytes | str) -> dict[str, Any]:
        try:
            value = json_codec.loads(text)
        except json_codec.JSONError:
            value = None
        if not isinstance(value, dict):
            raise BrokenStream("The upstream sent something that is not an answer.")
        return value

    def end(self) -> bytes:
        """Take the end of the upstream's body; return the last bytes for the caller.

        Afterwards the answer is done or broken.

        Raises:
            TruncatedStream: the answer is not complete.
        """
        late = self._slow_path(self._framer.feed(b"\n\n")) if not self.done else b""
        if self.broken is not None and not late:
            raise self.broken
        return late if self.done or self.broken is not None else self._ended_early(late)


class EventPassthrough(Passthrough):
    """A stream of a dialect with named events; a subclass knows what they mean.

    Attributes:
        markers: each event that ends the answer, breaks it or has its usage contains one of them.
    """

    markers: ClassVar[tuple[bytes, ...]]

    def __init__(self) -> None:
        super().__init__()
        self._events = 0

    @abstractmethod
    def _classify(self, event: dict[str, Any]) -> EventKind:
        """Return what an event means, and note its usage; BrokenStream if it has an error."""

    def used(self) -> Mapping[str, Any]:
        return counted(self.usage, self._events)

    def _fast_path(self, block: bytes) -> bytes | None:
        events = block.count(b"\n\n")
        objects = block.count(b"data: {") == block.count(b"}\n\n") == events
        if not objects or any(marker in block for marker in self.markers):
            return None
        self._events += events
        return block

    def _pass_one(self, event: bytes) -> bytes:
        text = sse.parse_event(event).data.strip()
        if not text:
            return self._hold(sse.comment_lines(event))
        kind = self._classify(self._parse(text))
        if kind is not EventKind.NOTHING:
            self._events += kind is EventKind.CONTENT
            self.started = True
            self.done = kind is EventKind.END
        return self._hold(event + b"\n\n")

    def _ended_early(self, late: bytes) -> bytes:
        cut = TruncatedStream("The upstream cut the answer off.")
        if not late:
            raise cut
        self.broken = cut
        return late
