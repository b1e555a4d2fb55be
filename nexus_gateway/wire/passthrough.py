"""Streams that are forwarded unchanged, and checked for their beginning, their end and errors.

`Passthrough` is what all of them share. Events are parsed one by one; once the answer has begun,
those that fit the shape of an earlier one (see `shapes`) are forwarded unread. Nothing else is:
whatever the scans do not prove is parsed. So a stream means the same however its bytes arrive.

`EventPassthrough` is its form for a dialect of named events, and `ChatPassthrough` the one for
OpenAI's chunks, in which it replaces the value of `model`. Most upstreams send the same bytes over
and over, but for one string: the piece of text. `EventTemplate` proves and renames a whole block of
such events by cutting it at the bytes between two texts. Shapes, which may differ in more places,
are only made if the templates of the first events do not fit the others.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from operator import itemgetter
from typing import Any, ClassVar

from nexus_gateway.errors import BrokenStream, ErrorEvent, TruncatedStream
from nexus_gateway.wire import json_codec, long_texts, sse
from nexus_gateway.wire.chunks import Progress, is_usage_only, raise_error
from nexus_gateway.wire.error_objects import read_named
from nexus_gateway.wire.shapes import TEXT, EventShape, is_utf8
from nexus_gateway.wire.usage import counted

# So many templates are tried on a stream; then its events are taken to have no common shape.
MAX_TEMPLATES = 4
MAX_SHAPES = 8
# No template is made of a longer event: its likes are rare, and a search in it is slow.
LONG_EVENT = 64 * 1024
_TOKEN = re.compile(rb'"((?:[^"\\]++|\\.)*+)"|[{}\[\]]')
_SCALAR = rb'\s*+:\s*+("(?:[^"\\]++|\\.)*+"|null|true|false|-?[0-9][0-9.eE+-]*+)'
_VALUE = re.compile(_SCALAR)
# Names and plain values up to the model's: nearly all upstreams write a chunk like this.
_MODEL_EARLY = re.compile(
    rb'\s*+\{\s*+(?:"(?!model")[^"\\]*+"\s*+:\s*+(?:"[^"\\]*+"|[-+.0-9a-zA-Z]++)\s*+,\s*+)*+"model"'
    + _SCALAR
)
_MODEL = b'"model"'
_EMPTY = re.compile(rb"\s*+\}")
_DATA = b"data: "
_START = b"data: {"
_END = b"\n\n"
_DONE_EVENT = sse.DONE[: -len(_END)]
_PLAIN_EVENT = re.compile(rb"(?:event: [a-z_.]++\n)?+data: \{[^\n]*+")
_CONTENT = re.compile(
    rb'"(?:content|reasoning_content|reasoning|arguments|text)"\s*+:\s*+"((?:[^"\\]++|\\.)++)"'
)
_TEXT = re.compile(TEXT)
# Texts, one a line, none of which ends the JSON string that contains it.
_TEXTS = re.compile(TEXT.replace(rb"\x00-\x1f", rb"\x00-\x09\x0b-\x1f"))
_NO_ANSWER = "The upstream sent something that is not an answer."
_CUT_OFF = "The upstream cut the answer off."
_Span = tuple[int, int]


class EventKind(Enum):
    """What an event means for the answer."""

    NOTHING = "nothing"
    CONTENT = "content"
    END = "end"


@dataclass(eq=False, repr=False)
class Passthrough(ABC):
    """One stream: whole events, held back until the first one with content.

    Until then the upstream can fail and another one can be tried, unnoticed by the caller.
    """

    started: bool = False  # content was seen; what `feed` returns may be sent
    done: bool = False  # the answer is complete
    # The error in the middle of a block whose events before it were returned.
    broken: BrokenStream | None = None
    usage: dict[str, Any] | None = None  # the upstream's, in OpenAI's shape
    events: int = 0  # with content so far, about one a token
    _framer: sse.Framer = field(default_factory=sse.Framer)
    _held: list[bytes] = field(default_factory=list)
    _held_size: int = 0
    _learnt: int = 0  # grows with each event that may help `_fast_path` with the next ones
    _shapes: list[EventShape] = field(default_factory=list)
    _shapes_left: int = MAX_SHAPES
    _unread_usage: bytes = b""  # events with a usage that were sent unparsed

    @property
    def is_empty(self) -> bool:
        """Whether the first thing that came was the answer's end."""
        return False

    @property
    def has_role(self) -> bool:
        """Whether a choice has begun, if only with its role."""
        return False

    def used(self) -> Mapping[str, Any]:
        """Return the usage: the upstream's, else the events with content counted as tokens."""
        return counted(self.usage, self.events)

    def _fast_path(self, block: bytes) -> tuple[bytes, int]:
        """Pass the beginning of a block that a few scans prove; return it and its length before."""
        return b"", 0

    @abstractmethod
    def _pass_one(self, event: bytes) -> bytes:
        """Examine one event; return what may be sent. BrokenStream if it is not an answer."""

    @abstractmethod
    def _ended_early(self, late: bytes) -> bytes:
        """Handle a body that ends before the answer does; `late` are its last events."""

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the upstream; return what may be sent to the caller, or b"".

        BrokenStream if an event is not JSON, an error, or too large.
        """
        block = self._framer.feed(data)
        if not block or self.done or self.broken is not None:
            return b""
        if not self.started:
            return self._slow_path(block)
        passed, end = self._fast_path(block)
        return passed + self._slow_path(block, end) if end < len(block) else passed

    def _slow_path(self, block: bytes, at: int = 0) -> bytes:
        """Examine a block event by event, but for those that fit a shape."""
        was_started = self.started
        out: list[bytes] = []
        while at < len(block):
            if self._shapes and self.started:
                passed, end = self._pass_run(block, at)
                if passed:
                    out.append(passed)
                    at = end
                    continue
            end = block.find(_END, at)
            end = len(block) if end < 0 else end  # an odd line end may be left at the end
            event, at = block[at:end].strip(b"\n"), end + 2
            if not event:
                continue
            learnt = self._learnt
            try:
                is_long = len(event) > json_codec.LARGE
                out.append(self._pass_long(event) if is_long else self._pass_one(event))
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
                passed, end = self._fast_path(block[at:])
                out.append(passed)
                at += end
        return b"".join(out)

    def _pass_long(self, event: bytes) -> bytes:
        """Examine an event without its long texts, which parsed are several times as large."""
        texts = long_texts.find(event)
        mark = secrets.token_hex(16).encode()
        short = long_texts.taken_out(event, texts, lambda number: b'"%b.%d"' % (mark, number))
        try:
            for text in texts:
                long_texts.check(event, text)
        except long_texts.WrongText:
            texts = []
        if not texts:
            return self._pass_one(event)

        def completed(passed: bytes) -> bytes:
            pieces: list[bytes | memoryview] = [*re.split(rb'"%b.([0-9]+)"' % mark, passed)]
            for n in range(1, len(pieces), 2):
                start, end = texts[int(pieces[n])]
                pieces[n] = memoryview(event)[start:end]
            return b"".join(pieces)

        try:
            passed = completed(self._pass_one(short))
        except BrokenStream:  # it may say why in a long text
            return self._pass_one(event)
        if self._held and mark in self._held[-1]:
            self._held[-1] = completed(self._held[-1])
            self._held_size += len(event) - len(short)
        return passed

    def _pass_run(self, block: bytes, at: int) -> tuple[bytes, int]:
        """Pass the events from `at` on that fit one shape; return them and their end, or b""."""
        for shape in self._shapes:
            end = shape.end_of_run(block, at)
            if end:
                run = block[at:end]
                self.events += run.count(_END)
                if shape.has_usage:
                    self._unread_usage = run
                return shape.renamed(run), end
        return b"", at

    def _learn(
        self, event: bytes, old: bytes = b"", new: bytes = b"", *, has_usage: bool = False
    ) -> None:
        """Pass events like this one unread from now on, if they have a shape."""
        self._shapes_left -= 1
        shape = EventShape.from_event(event, old, new, has_usage=has_usage)
        if shape is not None:
            self._shapes.append(shape)

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
            # orjson refuses half a character, whose other half may be in the next event.
            value = None
            with contextlib.suppress(json_codec.JSONError):
                value = json_codec.loads_exact(text.encode() if isinstance(text, str) else text)
        if not isinstance(value, dict):
            raise BrokenStream(_NO_ANSWER)
        return value

    def end(self) -> bytes:
        """Take the end of the upstream's body; return the last bytes for the caller.

        Afterwards the answer is done or broken; TruncatedStream if it is not complete.
        """
        late = self._slow_path(self._framer.feed(_END)) if not self.done else b""
        if self.broken is not None and not late:
            raise self.broken
        return late if self.done or self.broken is not None else self._ended_early(late)


class EventPassthrough(Passthrough):
    """A stream of a dialect with named events; a subclass knows what they mean."""

    # Each event that ends the answer, breaks it or has its usage contains one of these.
    markers: ClassVar[tuple[bytes, ...]]

    @abstractmethod
    def _classify(self, event: dict[str, Any]) -> EventKind:
        """Return what an event means, and note its usage; BrokenStream if it has an error."""

    def _pass_one(self, event: bytes) -> bytes:
        parsed = sse.parse_event(event)
        text = parsed.data.strip()
        if not text:
            return self._hold(sse.comment_lines(event))
        kind = self._read(text, is_error=parsed.name == "error")
        if kind is not EventKind.NOTHING:
            self.events += kind is EventKind.CONTENT
            self.started = True
            self.done = kind is EventKind.END
            if kind is EventKind.CONTENT and self._shapes_left and self._is_plain(event):
                self._learn(event)
        return self._hold(event + _END)

    def _is_plain(self, event: bytes) -> bool:
        """Return whether an event only has a piece of the answer, in one line."""
        has_marker = any(marker in event for marker in self.markers)
        return not has_marker and _PLAIN_EVENT.fullmatch(event) is not None

    def _read(self, text: str, *, is_error: bool) -> EventKind:
        try:
            value = self._parse(text)
        except BrokenStream:
            if is_error:
                raise ErrorEvent(read_named(text)) from None
            raise
        kind = self._classify(value)
        if is_error:
            raise ErrorEvent(read_named(text))
        raise_error(value, has_content="type" in value)
        return kind

    def _ended_early(self, late: bytes) -> bytes:
        cut = TruncatedStream(_CUT_OFF)
        if not late:
            raise cut
        self.broken = cut
        return late


class ChatPassthrough(Passthrough):
    """One stream of chunks; `model` is the value for the caller, None to keep the upstream's."""

    def __init__(self, model: str | None, usage_wanted: bool) -> None:
        super().__init__()
        self._progress = Progress()
        self._usage_wanted = usage_wanted
        self._model = json_codec.dumps(model) if model is not None else None
        self._template: EventTemplate | None = None
        self._templates_left = MAX_TEMPLATES

    def _ended_early(self, late: bytes) -> bytes:
        """Complete an answer that has its finish and only lacks the `[DONE]`."""
        if not self._progress.complete:
            cut = TruncatedStream(_CUT_OFF)
            if not late:
                raise cut
            self.broken = cut
            return late
        self.done = True
        return late + sse.DONE

    @property
    def is_empty(self) -> bool:
        return self._progress.is_empty

    @property
    def has_role(self) -> bool:
        return bool(self._progress.open)

    def used(self) -> Mapping[str, Any]:
        if self._unread_usage:
            for event in sse.split(self._unread_usage):
                self.usage = json_codec.loads(event[len(_DATA) :])["usage"]
        return counted(self.usage, self.events)

    def feed(self, data: bytes) -> bytes:
        """Take bytes; most often they are one event that the template fits."""
        template = self._template
        if template is not None and self._framer.at_boundary and not (self.done or self.broken):
            passed = template.apply_to_one(data)
            if passed is not None:
                self.events += 1
                return passed
        return super().feed(data)

    def _fast_path(self, block: bytes) -> tuple[bytes, int]:
        applied = None if self._template is None else self._template.apply(block)
        if applied is None:
            return b"", 0
        passed, count, rest = applied
        self.events += count
        return passed, len(block) - len(rest)

    def _pass_one(self, event: bytes) -> bytes:
        if event == _DONE_EVENT and self.started:
            self.done = True
            return sse.DONE
        if not event.startswith(_START) or b"\n" in event:
            return self._pass_odd(event)
        text = event[len(_DATA) :]
        chunk = self._parse(text)
        has_content, ends = self._progress.take(chunk)
        has_usage = isinstance(chunk.get("usage"), dict)
        if has_usage:
            self.usage, self._unread_usage = chunk["usage"], b""
        span = None if self._model is None else find_model(text, chunk)
        if has_content:
            self.events += 1
            self.started = True
            if self._templates_left and not (ends or has_usage):
                self._templates_left -= 1
                self._learnt += 1
                self._template = EventTemplate.from_event(text, span, self._model)
            elif self._shapes_left and not ends:
                self._learn_renamed(event, span, has_usage=has_usage)
        elif self.usage is not None and not self._usage_wanted and is_usage_only(chunk):
            return b""
        del chunk  # a long event is in memory often enough
        if span is not None and self._model is not None:
            text = b"".join((text[: span[0]], self._model, text[span[1] :]))
        elif self._model is not None:
            text = _insert_model(text, self._model)
        event = _DATA + text + _END
        return self._hold(event) if self._held or not self.started else event

    def _pass_odd(self, event: bytes) -> bytes:
        """Pass an event that has no data, or whose data is no object in one line."""
        fields = [line.partition(b":") for line in event.split(b"\n")]
        data = [value.removeprefix(b" ") for name, _, value in fields if name == b"data"]
        # A line end inside JSON is white space between tokens, so a space may replace it.
        text = b" ".join(data).strip()
        if not text:
            return self._hold(sse.comment_lines(event))
        if sse.parse_event(event).name == "error":
            raise ErrorEvent(read_named(text.decode("utf-8", "replace")))
        if text == b"[DONE]" and not self.started:
            raise TruncatedStream("The upstream ended its answer before it began.")
        if text != b"[DONE]" and not text.startswith(b"{"):
            raise BrokenStream(_NO_ANSWER)
        return self._pass_one(_DATA + text)

    def _learn_renamed(self, event: bytes, span: _Span | None, *, has_usage: bool) -> None:
        if self._model is None:
            self._learn(event, has_usage=has_usage)
        elif span is not None:
            start, end = span[0] + len(_DATA), span[1] + len(_DATA)
            name = event.rindex(b'"model"', 0, start)
            self._learn(
                event, event[name:end], event[name:start] + self._model, has_usage=has_usage
            )


def find_model(text: bytes, parsed: Mapping[str, Any]) -> _Span | None:
    """Return where the value of the top level's `model` starts and ends, quotes included.

    `parsed` is the object that the text was parsed into.
    """
    early = _MODEL_EARLY.match(text)
    if early is not None:
        return early.span(1)
    if "model" not in parsed:
        return None
    if text.count(_MODEL) == 1:  # to look at each string of a long text would take long
        value = _VALUE.match(text, text.index(_MODEL) + len(_MODEL))
        if value is not None:
            return value.span(1)
    depth = 0
    for token in _TOKEN.finditer(text):
        bracket = token.group()
        if bracket in (b"{", b"["):
            depth += 1
        elif bracket in (b"}", b"]"):
            depth -= 1
        elif depth == 1 and token.group(1) == b"model":
            value = _VALUE.match(text, token.end())
            if value:
                return value.span(1)
    return None


def set_model(text: bytes, parsed: Mapping[str, Any], model: bytes) -> bytes:
    """Set the `model` of a JSON object's bytes to a JSON string."""
    span = find_model(text, parsed)
    if span is not None:
        return b"".join((text[: span[0]], model, text[span[1] :]))
    return _insert_model(text, model)


def _insert_model(text: bytes, model: bytes) -> bytes:
    start = text.index(b"{") + 1
    comma = b"" if _EMPTY.match(text, start) else b","
    return b"".join((text[:start], b'"model":', model, comma, text[start:]))


@dataclass(slots=True)
class EventTemplate:
    """The bytes around the text of each event, and what replaces them."""

    before: bytes  # from the event's beginning to the text
    after: bytes  # from the text to the event's end, with the empty line
    new_before: bytes
    new_after: bytes

    @classmethod
    def from_event(
        cls, data: bytes, span: _Span | None, model: bytes | None
    ) -> EventTemplate | None:
        """Make the template of one event; None if its text cannot be separated.

        The event's data is a JSON object in one line with content and without a finish; `span` is
        its `find_model`, and `model` the new value as JSON, None to keep it.
        """
        content = None if len(data) > LONG_EVENT else _CONTENT.search(data)
        if content is None:
            return None
        start, end = content.span(1)
        before, after = _DATA + data[:start], data[end:] + _END
        new_before, new_after = before, after
        if model is not None:
            if span is None:
                new_before = before.replace(b"{", b'{"model":' + model + b",", 1)
            elif span[1] <= start:
                new_before = _DATA + data[: span[0]] + model + data[span[1] : start]
            elif span[0] >= end:
                new_after = data[end : span[0]] + model + data[span[1] :] + _END
            else:
                return None
        return cls(before, after, new_before, new_after)

    def apply_to_one(self, event: bytes) -> bytes | None:
        """Rename one event if its text is plain; else return None."""
        shortest = len(self.before) + len(self.after)
        if len(event) >= shortest and event.startswith(self.before) and event.endswith(self.after):
            text = event[len(self.before) : -len(self.after)]
            if _TEXT.fullmatch(text) and (text.isascii() or is_utf8(text)):
                return self.new_before + text + self.new_after
        return None

    def apply(self, block: bytes) -> tuple[bytes, int, bytes] | None:
        """Rename the events of this shape at the beginning of a block of whole events.

        Returns these, their number, and the rest of the block; None if none is proved.
        """
        before, after = self.before, self.after
        if not block.startswith(before):
            return None
        start = len(before)
        if block.endswith(after):
            end, rest = len(block) - len(after), b""
        else:
            end = block.rfind(after)
            rest = block[end + len(after) :]
        if end < start:
            return None
        texts = self._texts(block[start:end])
        if texts is None:
            return None
        lines = b"\n".join(texts)
        if lines.count(b"\n") != len(texts) - 1 or not _TEXTS.fullmatch(lines):
            return None
        if not (lines.isascii() or is_utf8(lines)):
            return None
        renamed = (self.new_after + self.new_before).join(texts)
        return self.new_before + renamed + self.new_after, len(texts), rest

    def _texts(self, block: bytes) -> list[bytes] | None:
        """Cut a block, from its first text to its last, into texts; None if other events are in it.

        The same as `block.split(after + before)`, which is slow if these are long: cut at the empty
        lines, remove the bytes around the texts by their length, and compare.
        """
        if _END not in block:
            return [block]
        first, *rest, last = block.split(_END)
        start, end = len(self.before), 2 - len(self.after)
        texts = [first[:end], *map(itemgetter(slice(start, end)), rest), last[start:]]
        return texts if (self.after + self.before).join(texts) == block else None
