"""Streams that are forwarded unchanged, and checked for their beginning, their end and errors.

`Passthrough` is what all of them share. `EventPassthrough` is its form for a dialect of named
events: once the answer has begun, blocks that contain none of the dialect's markers are forwarded
unread.

`ChatPassthrough` is its form for OpenAI's chunks. It replaces the value of `model`, at three
speeds. The events of a stream are the same bytes over and over, but for one string: the piece of
text. Once one event was parsed and found good, any other that differs from it only inside that
string is good as well: it has the same names, the same choices, no error, no finish.
`EventTemplate` proves and renames a whole block of such events by cutting it at the bytes between
two texts. Any other block is *plain* if a few scans prove that each of its events is one line
`data: {…}`, with the model's name written as in the first event, and that none has an error or a
usage: then one `replace` renames the whole block. The rest goes event by event, and only an event
that is not plain by itself is parsed.
"""

from __future__ import annotations

import contextlib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from operator import itemgetter
from typing import Any, ClassVar

from nexus_gateway.errors import BrokenStream, ErrorEvent, TruncatedStream
from nexus_gateway.wire import json_codec, sse
from nexus_gateway.wire.chunks import content_and_finish, is_usage_only
from nexus_gateway.wire.error_objects import normalise_error
from nexus_gateway.wire.usage import counted

# So many templates are tried on a stream; then its events are taken to have no common shape.
MAX_TEMPLATES = 4
_TOKEN = re.compile(rb'"((?:[^"\\]|\\.)*)"|[{}\[\]]')
_SCALAR = rb'\s*:\s*("(?:[^"\\]|\\.)*"|null|true|false|-?[0-9][0-9.eE+-]*)'
_VALUE = re.compile(_SCALAR)
# Names and plain values up to the model's: nearly all upstreams write a chunk like this.
_MODEL_EARLY = re.compile(
    rb'\s*\{\s*(?:"(?!model")[^"\\]*"\s*:\s*(?:"[^"\\]*"|[-+.0-9a-zA-Z]+)\s*,\s*)*+"model"'
    + _SCALAR
)
_DATA = b"data: "
_START = b"data: {"
_END = b"\n\n"
_GLUE = _END + _START
_CONTENT = re.compile(
    rb'"(?:content|reasoning_content|reasoning|arguments|text)"\s*:\s*"((?:[^"\\]|\\.)+)"'
)
# Texts, one a line, none of which ends the JSON string that contains it.
_TEXTS = re.compile(rb'(?:[^"\\\n]++|\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4})|\n)*+')
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

    def used(self) -> Mapping[str, Any]:
        """Return the usage: the upstream's, else the events with content counted as tokens."""
        return counted(self.usage, self.events)

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

        BrokenStream if an event is not JSON, an error, or too large.
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
            end = block.find(_END, at)
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

    def _fast_path(self, block: bytes) -> bytes | None:
        events = block.count(_END)
        objects = block.count(_START) == block.count(b"}\n\n") == events
        if not objects or any(marker in block for marker in self.markers):
            return None
        self.events += events
        return block

    def _pass_one(self, event: bytes) -> bytes:
        text = sse.parse_event(event).data.strip()
        if not text:
            return self._hold(sse.comment_lines(event))
        kind = self._classify(self._parse(text))
        if kind is not EventKind.NOTHING:
            self.events += kind is EventKind.CONTENT
            self.started = True
            self.done = kind is EventKind.END
        return self._hold(event + _END)

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
        self._finished = False
        self._usage_wanted = usage_wanted
        self._model = json_codec.dumps(model) if model is not None else None
        # How this upstream writes `model` in each event, and what replaces that.
        self._model_key = self._renamed = b""
        self._usage_block = b""
        self._template: EventTemplate | None = None
        self._templates_left = MAX_TEMPLATES

    def _ended_early(self, late: bytes) -> bytes:
        """Complete an answer that has its finish and only lacks the `[DONE]`."""
        if not self._finished:
            raise TruncatedStream(_CUT_OFF)
        self.done = True
        return late + sse.DONE

    def used(self) -> Mapping[str, Any]:
        if self._usage_block:
            # These events were sent unparsed: it is too late to report an error in them.
            with contextlib.suppress(BrokenStream):
                for event in sse.split(self._usage_block):
                    self._read(event.removeprefix(_DATA))
        return counted(self.usage, self.events)

    def _is_plain(self, block: bytes) -> bool:
        events = block.count(_GLUE) + 1
        return (
            block.startswith(_START)
            and block.count(b"\n") == 2 * events
            and block.count(self._model_key) == events
            and b'"error"' not in block
            and b'"choices":[]' not in block
            and b'"choices": []' not in block
            and (
                self._usage_wanted
                or b'"usage":' not in block
                # All have choices: none can be a usage chunk.
                or block.count(b'"choices":[{') + block.count(b'"choices": [{') == events
            )
            and (self._model_key is not _START or b'"model"' not in block)
        )

    def feed(self, data: bytes) -> bytes:
        """Take bytes; most often they are one event that the template fits."""
        template = self._template
        if template is not None and self._framer.at_boundary and not (self.done or self.broken):
            passed = template.apply_to_one(data)
            if passed is not None:
                self.events += 1
                return passed
        return super().feed(data)

    def _fast_path(self, block: bytes) -> bytes | None:
        """Pass a block that begins with events of the template, or that is plain."""
        applied = None if self._template is None else self._template.apply(block)
        if applied is None:
            # Another one of the first events may give the template that fits the others.
            return None if self._templates_left else self._pass_plain(block)
        out, count, rest = applied
        self.events += count
        if not rest:
            return out
        passed = self._pass_plain(rest)
        return out + (self._slow_path(rest) if passed is None else passed)

    def _pass_plain(self, block: bytes) -> bytes | None:
        """Pass a block that is plain, but for a `[DONE]` at its end; else return None."""
        done = block.endswith(sse.DONE)
        if done:
            block = block[: -len(sse.DONE)]
        if not self._is_plain(block):
            return None
        self.done = done
        self.events += block.count(_GLUE) + 1
        if b'"finish_reason":"' in block or b'"finish_reason": "' in block:
            self._finished = True
        # If usage is requested, most upstreams write `"usage":null` into all the other events.
        if b'"usage":' in block and (b'"usage":{' in block or b'"usage": {' in block):
            self._usage_block = block
        if self._model is not None:
            block = block.replace(self._model_key, self._renamed)
        return block + sse.DONE if done else block

    def _pass_one(self, event: bytes) -> bytes:
        if self.started and not self._templates_left:
            passed = self._pass_plain(event + _END)
            if passed is not None:
                return passed
        if event.startswith(_START) and b"\n" not in event:
            return self._examine(event[len(_DATA) :])
        fields = [line.partition(b":") for line in event.split(b"\n")]
        data = [value.removeprefix(b" ") for name, _, value in fields if name == b"data"]
        # A line end inside JSON is white space between tokens, so a space may replace it.
        text = b" ".join(data).strip()
        if not text:
            return self._hold(sse.comment_lines(event))
        if text != b"[DONE]":
            return self._examine(text)
        if not self.started:
            raise TruncatedStream("The upstream ended its answer before it began.")
        self.done = True
        return sse.DONE

    def _examine(self, text: bytes) -> bytes:
        chunk = self._read(text)
        has_content, ends = content_and_finish(chunk)
        self._finished = self._finished or ends
        span = find_model(text)
        if has_content:
            self.events += 1
            if not self.started:
                self._begin(text, span)
            if self._templates_left and not ends:
                self._templates_left -= 1
                self._learnt += 1
                if not isinstance(chunk.get("usage"), dict):
                    self._template = EventTemplate.from_event(text, span, self._model)
        elif self.usage is not None and not self._usage_wanted and is_usage_only(chunk):
            return b""
        if self._model is not None:
            text = set_model(text, self._model, span)
        return self._hold(_DATA + text + _END)

    def _read(self, text: bytes) -> dict[str, Any]:
        """Parse a chunk and note its usage."""
        chunk = self._parse(text)
        if chunk.get("error"):
            raise ErrorEvent(normalise_error(chunk["error"]))
        if isinstance(chunk.get("usage"), dict):
            self.usage, self._usage_block = chunk["usage"], b""
        return chunk

    def _begin(self, text: bytes, span: _Span | None) -> None:
        """Note how this upstream writes `model`, from the first event with content."""
        self.started = True
        model = self._model or b""
        if span:
            key = text.rindex(b'"model"', 0, span[0])
            self._model_key = text[key : span[1]]
            self._renamed = text[key : span[0]] + model
        else:
            self._model_key = _START
            self._renamed = _START + b'"model":' + model + b","


def find_model(text: bytes) -> _Span | None:
    """Return where the value of the top level's `model` starts and ends, quotes included."""
    early = _MODEL_EARLY.match(text)
    if early is not None:
        return early.span(1)
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


def set_model(text: bytes, model: bytes, span: _Span | None = None) -> bytes:
    """Set the `model` of a JSON object's bytes to a JSON string; `span` is its `find_model`."""
    span = span or find_model(text)
    if span:
        return text[: span[0]] + model + text[span[1] :]
    start = text.index(b"{") + 1
    comma = b"" if text[start:].lstrip().startswith(b"}") else b","
    return text[:start] + b'"model":' + model + comma + text[start:]


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
        content = _CONTENT.search(data)
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
            if not (b'"' in text or b"\\" in text or b"\n" in text or b"\r" in text):
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
        if lines.count(b"\n") != len(texts) - 1:
            return None
        if (b'"' in lines or b"\\" in lines) and not _TEXTS.fullmatch(lines):
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
