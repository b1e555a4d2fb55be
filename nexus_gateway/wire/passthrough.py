"""Pass a stream through as it is, and know when it has begun, ended or broken.

`Passthrough` is what all streams have in common; `splice` is its form for OpenAI's chunks, and
`EventPassthrough` that for a backend's own dialect: events go out untouched, and once the answer has
begun, blocks without any of the telling marks pass unread.
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
    """What an event is to the answer."""

    NOTHING = "nothing"
    CONTENT = "content"
    END = "end"


class Passthrough(ABC):
    """One stream's way through: whole events, held until the first one that says something.

    Till then an upstream can still fail without anybody having seen it.

    Attributes:
        started: content has been seen; what `feed` returns may go out.
        done: the answer is whole.
        broken: what ended the stream in the middle of a block, whose good part was passed.
        usage: what was used, in OpenAI's shape; None as long as it is unknown.
    """

    def __init__(self) -> None:
        self.started = False
        self.done = False
        self.broken: BrokenStream | None = None
        self.usage: dict[str, Any] | None = None
        self._framer = sse.Framer()
        self._held: list[bytes] = []
        self._held_size = 0
        self._knowledge = 0  # grows with what helps to pass a block at once

    @abstractmethod
    def _fast_path(self, block: bytes) -> bytes | None:
        """Pass a block unread where a few scans prove that it is plain; None where it is not."""

    @abstractmethod
    def _pass_one(self, event: bytes) -> bytes:
        """Look into one event; return what may go out for it. BrokenStream if it is no answer."""

    @abstractmethod
    def _ended_early(self, late: bytes) -> bytes:
        """Say what the end of the body means before the answer's; `late` came only just now."""

    def feed(self, data: bytes) -> bytes:
        """Take what came from the upstream; return what may go to the caller, or b"".

        Raises:
            BrokenStream: an event that is no JSON, an error event, or one that is too large.
        """
        block = self._framer.feed(data)
        if not block or self.done or self.broken is not None:
            return b""
        passed = self._fast_path(block) if self.started else None
        return self._slow_path(block) if passed is None else passed

    def _slow_path(self, block: bytes) -> bytes:
        """Go through a block event by event."""
        was_started = self.started
        out: list[bytes] = []
        at = 0
        while at < len(block):
            end = block.find(b"\n\n", at)
            end = len(block) if end < 0 else end  # an odd line end may be left at the end
            event, at = block[at:end].strip(b"\n"), end + 2
            if not event:
                continue
            knew = self._knowledge
            try:
                out.append(self._pass_one(event))
            except BrokenStream as broken:
                # Before anything has gone out, nothing of it shall; later, what came is kept.
                if not was_started:
                    raise
                self.broken = broken
                break
            if self.done:
                break
            if self.started and knew != self._knowledge:
                # In a burst all the rest is here as well, and mostly plain.
                rest = self._fast_path(block[at:])
                if rest is not None:
                    out.append(rest)
                    break
        return b"".join(out)

    def _hold(self, event: bytes) -> bytes:
        """Keep an event, or let it go with those kept before; return what may go out.

        Raises:
            BrokenStream: too much came before the answer began.
        """
        if self.started:
            held, self._held = self._held, []
            return b"".join(held) + event
        self._held.append(event)
        self._held_size += len(event)
        if self._held_size > sse.LONGEST_EVENT:
            raise BrokenStream("The upstream sent too much before its answer began.")
        return b""

    def end(self) -> bytes:
        """Say that the upstream's body has ended; return what is still to be sent.

        After it the answer is done or broken: nothing more comes.

        Raises:
            TruncatedStream: the answer was not finished.
        """
        late = self._slow_path(self._framer.feed(b"\n\n")) if not self.done else b""
        if self.broken is not None and not late:
            raise self.broken
        return late if self.done or self.broken is not None else self._ended_early(late)


class EventPassthrough(Passthrough):
    """A stream in a dialect of its own; the dialect says what its events mean.

    Attributes:
        telling: an event that ends, breaks or counts the answer has one of these in it.
    """

    markers: ClassVar[tuple[bytes, ...]]

    def __init__(self) -> None:
        super().__init__()
        self._events = 0

    @abstractmethod
    def _mark(self, event: dict[str, Any]) -> EventKind:
        """Tell what an event is, and note its usage; BrokenStream where it carries an error."""

    def _fast_path(self, block: bytes) -> bytes | None:
        events = block.count(b"\n\n")
        objects = block.count(b"data: {") == block.count(b"}\n\n") == events
        if not objects or any(mark in block for mark in self.markers):
            return None
        self._events += events
        return block

    def _pass_one(self, event: bytes) -> bytes:
        text = sse.parse_event(event).data.strip()
        if not text:
            return self._hold(sse.comment_lines(event))
        self._examine(text)
        return self._hold(event + b"\n\n")

    def _examine(self, text: str) -> None:
        try:
            value = json_codec.loads(text)
        except json_codec.JSONError:
            value = None
        if not isinstance(value, dict):
            raise BrokenStream("The upstream sent something that is not an answer.")
        mark = self._mark(value)
        if mark is EventKind.NOTHING:
            return
        self._events += mark is EventKind.CONTENT
        self.started = True
        self.done = mark is EventKind.END

    def _ended_early(self, late: bytes) -> bytes:
        cut = TruncatedStream("The upstream cut the answer off.")
        if not late:
            raise cut
        self.broken = cut
        return late

    def used(self) -> Mapping[str, Any]:
        """Return what was used: as the upstream counts, else the events with content as tokens."""
        return counted(self.usage, self._events)
