"""Pass a stream through as it is, and know when it has begun, ended or broken.

For streams in a backend's own dialect (those of OpenAI's chunks have `splice`). Whole events
go out untouched, held until the first one that says something. Once that has come, blocks
without any of the telling marks pass unread.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from enum import Enum
from typing import Any, ClassVar

from nexus_gateway import json_codec, sse
from nexus_gateway.answer import counted
from nexus_gateway.errors import BrokenStream, TruncatedStream


class Mark(Enum):
    """What an event is to the answer."""

    NOTHING = "nothing"
    CONTENT = "content"
    END = "end"


class HeldBack:
    """Whole events that wait for the first one that says something.

    Till then an upstream can still fail without anybody having seen it.

    Attributes:
        started: it has come; nothing is held any more.
    """

    def __init__(self) -> None:
        self.started = False
        self._held: list[bytes] = []
        self._size = 0

    def hold(self, event: bytes) -> bytes:
        """Keep an event, or let it go with those kept before; return what may go out.

        Raises:
            BrokenStream: too much came before the answer began.
        """
        if self.started:
            held, self._held = self._held, []
            return b"".join(held) + event
        self._held.append(event)
        self._size += len(event)
        if self._size > sse.LONGEST_EVENT:
            raise BrokenStream("The upstream sent too much before its answer began.")
        return b""


class EventPassage(HeldBack, ABC):
    """One stream's way through; a dialect says what its events mean.

    Attributes:
        telling: an event that ends, breaks or counts the answer has one of these in it.
        started: content has been seen; what `feed` returns may go out.
        done: the last event has been seen: the answer is whole.
        broken: what ended the stream in the middle of a block, whose good part was passed.
        usage: what was used, in OpenAI's shape.
    """

    telling: ClassVar[tuple[bytes, ...]]

    def __init__(self) -> None:
        super().__init__()
        self.done = False
        self.broken: BrokenStream | None = None
        self.usage: dict[str, Any] | None = None
        self._events = 0
        self._framer = sse.Framer()

    @abstractmethod
    def _mark(self, event: dict[str, Any]) -> Mark:
        """Tell what an event is, and note its usage; BrokenStream where it carries an error."""

    def feed(self, data: bytes) -> bytes:
        """Take what came from the upstream; return what may go to the caller, or b"".

        Raises:
            BrokenStream: an event that is no JSON, an error event, or one that is too large.
        """
        block = self._framer.feed(data)
        if not block or self.done:
            return b""
        events = block.count(b"\n\n")
        objects = block.count(b"data: {") == block.count(b"}\n\n") == events
        plain = objects and not any(mark in block for mark in self.telling)
        if self.started and plain:
            self._events += events
            return block
        return self._careful(block)

    def _careful(self, block: bytes) -> bytes:
        was_started = self.started
        out: list[bytes] = []
        for event in sse.split(block):
            try:
                self._examine(event)
            except BrokenStream as broken:
                # Before anything has gone out, nothing of it shall; later, what came is kept.
                if not was_started:
                    raise
                self.broken = broken
                break
            out.append(self.hold(event + b"\n\n"))
            if self.done:
                break
        return b"".join(out)

    def _examine(self, event: bytes) -> None:
        text = sse.read(event).data
        if not text:
            return
        try:
            value = json_codec.loads(text)
        except json_codec.JSONError:
            value = None
        if not isinstance(value, dict):
            raise BrokenStream("The upstream sent something that is not an answer.")
        mark = self._mark(value)
        if mark is Mark.NOTHING:
            return
        self._events += mark is Mark.CONTENT
        self.started = True
        self.done = mark is Mark.END

    def end(self) -> bytes:
        """Say that the upstream's body has ended; return what is still to be sent.

        Raises:
            TruncatedStream: the answer was not finished.
        """
        late = self._careful(self._framer.feed(b"\n\n")) if not self.done else b""
        if self.broken is not None and not late:
            raise self.broken
        if not self.done and self.broken is None and not late:
            raise TruncatedStream("The upstream cut the answer off.")
        return late

    def used(self) -> Mapping[str, Any]:
        """Return what was used: as the upstream counts, else the events with content as tokens."""
        return counted(self.usage, self._events)
