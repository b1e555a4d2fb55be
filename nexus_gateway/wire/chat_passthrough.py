"""Pass OpenAI's chunks through unchanged but for the value of `model`, at three speeds.

The events of a stream are the same bytes over and over, but for one string: the piece of text.
Once one event was parsed and found good, any other that differs from it only inside that string is
good as well: it has the same names, the same choices, no error, no finish. `EventTemplate` proves
and renames a whole block of such events by cutting it at the bytes between two texts.

Any other block is *plain* if a few scans prove that each of its events is one line `data: {…}`,
with the model's name written as in the first event, and that none has an error or a usage: then
one `replace` renames the whole block.

The rest goes event by event, and only an event that is not plain by itself is parsed.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from typing import Any

from nexus_gateway.errors import BrokenStream, ErrorEvent, TruncatedStream
from nexus_gateway.wire import json_codec, sse
from nexus_gateway.wire.chunks import finished, has_content, is_usage_only
from nexus_gateway.wire.error_objects import normalise_error
from nexus_gateway.wire.passthrough import Passthrough
from nexus_gateway.wire.usage import counted

# So many templates are tried on a stream; then its events are taken to have no common shape.
MAX_TEMPLATES = 4
_TOKEN = re.compile(rb'"((?:[^"\\]|\\.)*)"|[{}\[\]]')
# Names and plain values up to the model's: nearly all upstreams write a chunk like this.
_MODEL_EARLY = re.compile(
    rb'\s*\{\s*(?:"(?!model")[^"\\]*"\s*:\s*(?:"[^"\\]*"|[-+.0-9a-zA-Z]+)\s*,\s*)*+'
    rb'"model"\s*:\s*("(?:[^"\\]|\\.)*"|null|true|false|-?[0-9][0-9.eE+-]*)'
)
_VALUE = re.compile(rb'\s*:\s*("(?:[^"\\]|\\.)*"|null|true|false|-?[0-9][0-9.eE+-]*)')
_DATA = b"data: "
_START = b"data: {"
_GLUE = b"\n\n" + _START
_FINISHED = (b'"finish_reason":"', b'"finish_reason": "')
_CONTENT = re.compile(
    rb'"(?:content|reasoning_content|reasoning|arguments|text)"\s*:\s*"((?:[^"\\]|\\.)+)"'
)
# Texts, one a line, none of which ends the JSON string that contains it.
_TEXTS = re.compile(rb'(?:[^"\\\n]++|\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4})|\n)*+')
_END = b"\n\n"


class ChatPassthrough(Passthrough):
    """One stream of chunks.

    Args:
        model: the value that the caller gets for `model`; None to keep the upstream's.
        usage_wanted: whether the caller asked for the usage chunk.

    Attributes:
        events: the number of events with content so far, about one a token.
    """

    def __init__(self, model: str | None, usage_wanted: bool) -> None:
        super().__init__()
        self.events = 0
        self._finished = False
        self._usage_wanted = usage_wanted
        self._model = json_codec.dumps(model) if model is not None else None
        self._model_key = b""
        self._renamed = b""
        self._usage_block = b""
        self._template: EventTemplate | None = None
        self._templates_left = MAX_TEMPLATES

    def _ended_early(self, late: bytes) -> bytes:
        """Complete an answer that has its finish and only lacks the `[DONE]`."""
        if not self._finished:
            raise TruncatedStream("The upstream cut the answer off.")
        self.done = True
        return late + sse.DONE

    def used(self) -> Mapping[str, Any]:
        if self._usage_block:
            # These events were sent unparsed: it is too late to report an error in them.
            with contextlib.suppress(BrokenStream):
                for event in sse.split(self._usage_block):
                    self._read(event.removeprefix(b"data: "))
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
            and (self._usage_wanted or _all_have_choices(block, events))
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
        if self._is_plain(block):
            return self._pass(block)
        if block.endswith(sse.DONE) and self._is_plain(block[: -len(sse.DONE)]):
            return self._pass(block[: -len(sse.DONE)]) + self._finish()
        return None

    def _pass(self, block: bytes) -> bytes:
        self.events += block.count(_GLUE) + 1
        if not self._finished and (_FINISHED[0] in block or _FINISHED[1] in block):
            self._finished = True
        # If usage is requested, most upstreams write `"usage":null` into all the other events.
        if b'"usage":' in block and (b'"usage":{' in block or b'"usage": {' in block):
            self._usage_block = block
        return block if self._model is None else block.replace(self._model_key, self._renamed)

    def _pass_one(self, event: bytes) -> bytes:
        block = event + b"\n\n"
        plain = self.started and not self._templates_left and self._is_plain(block)
        return self._pass(block) if plain else self._examine(event)

    def _examine(self, event: bytes) -> bytes:
        if event.startswith(_START) and b"\n" not in event:
            return self._examine_data(event[len(_DATA) :])
        fields = [line.partition(b":") for line in event.split(b"\n")]
        data = [value.removeprefix(b" ") for name, _, value in fields if name == b"data"]
        # A line end inside JSON is white space between tokens, so a space may replace it.
        text = b" ".join(data).strip()
        if not text:
            return self._hold(sse.comment_lines(event))
        return self._finish() if text == b"[DONE]" else self._examine_data(text)

    def _examine_data(self, text: bytes) -> bytes:
        chunk = self._read(text)
        if is_usage_only(chunk) and not self._usage_wanted:
            return b""
        ends = finished(chunk)
        self._finished = self._finished or ends
        span = find_model(text)
        if has_content(chunk):
            self.events += 1
            self._begin(text, span)
            if self._templates_left and not ends:
                self._templates_left -= 1
                self._learnt += 1
                if not isinstance(chunk.get("usage"), dict):
                    self._template = EventTemplate.from_event(text, span, self._model)
        return self._hold(sse.frame(set_model(text, self._model, span)))

    def _finish(self) -> bytes:
        if not self.started:
            raise TruncatedStream("The upstream ended its answer before it began.")
        self.done = True
        return sse.DONE

    def _read(self, text: bytes) -> dict[str, Any]:
        """Parse a chunk and note its usage."""
        chunk = self._parse(text)
        if chunk.get("error"):
            raise ErrorEvent(normalise_error(chunk["error"]))
        if isinstance(chunk.get("usage"), dict):
            self.usage, self._usage_block = chunk["usage"], b""
        return chunk

    def _begin(self, text: bytes, span: tuple[int, int] | None) -> None:
        """Note how this upstream writes `model`, from the first event with content."""
        if self.started:
            return
        self.started = True
        if span:
            key = text.rindex(b'"model"', 0, span[0])
            self._model_key = text[key : span[1]]
            self._renamed = text[key : span[0]] + (self._model or b"")
        else:
            self._model_key = _START
            self._renamed = _START + b'"model":' + (self._model or b"") + b","


def _all_have_choices(block: bytes, events: int) -> bool:
    """Return whether none of a block's events can be a usage chunk."""
    if b'"usage":' not in block:
        return True
    return block.count(b'"choices":[{') + block.count(b'"choices": [{') == events


def find_model(text: bytes) -> tuple[int, int] | None:
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


def set_model(text: bytes, model: bytes | None, span: tuple[int, int] | None = None) -> bytes:
    """Set the `model` of a JSON object's bytes to a JSON string, or keep it if that is None.

    `span` is the result of `find_model`, if it is known.
    """
    if model is None:
        return text
    span = span or find_model(text)
    if span:
        return text[: span[0]] + model + text[span[1] :]
    start = text.index(b"{") + 1
    comma = b"" if text[start:].lstrip().startswith(b"}") else b","
    return text[:start] + b'"model":' + model + comma + text[start:]


class EventTemplate:
    """The bytes around the text of each event, and what replaces them.

    Args:
        before: from the event's beginning to the text.
        after: from the text to the event's end, with the empty line.
        new_before: what is sent instead of `before`.
        new_after: what is sent instead of `after`.
    """

    __slots__ = ("_after", "_before", "_glue", "_new_after", "_new_before", "_new_glue")

    def __init__(self, before: bytes, after: bytes, new_before: bytes, new_after: bytes) -> None:
        self._before, self._after, self._glue = before, after, after + before
        self._new_before, self._new_after = new_before, new_after
        self._new_glue = new_after + new_before

    @classmethod
    def from_event(
        cls, data: bytes, span: tuple[int, int] | None, model: bytes | None
    ) -> EventTemplate | None:
        """Make the template of one event; None if its text cannot be separated.

        Args:
            data: the event's data, a JSON object in one line with content and without a finish.
            span: where the value of `model` is in it; None if it has none.
            model: the new value, as JSON; None to keep it.
        """
        content = _CONTENT.search(data)
        if content is None:
            return None
        start, end = content.span(1)
        before, after = b"data: " + data[:start], data[end:] + _END
        new_before, new_after = before, after
        if model is not None:
            if span is None:
                new_before = before.replace(b"{", b'{"model":' + model + b",", 1)
            elif span[1] <= start:
                new_before = b"data: " + data[: span[0]] + model + data[span[1] : start]
            elif span[0] >= end:
                new_after = data[end : span[0]] + model + data[span[1] :] + _END
            else:
                return None
        return cls(before, after, new_before, new_after)

    def apply_to_one(self, event: bytes) -> bytes | None:
        """Rename one event if its text is plain; else return None."""
        shortest = len(self._before) + len(self._after)
        if (
            len(event) >= shortest
            and event.startswith(self._before)
            and event.endswith(self._after)
        ):
            text = event[len(self._before) : -len(self._after)]
            if not (b'"' in text or b"\\" in text or b"\n" in text or b"\r" in text):
                return self._new_before + text + self._new_after
        return None

    def apply(self, block: bytes) -> tuple[bytes, int, bytes] | None:
        """Rename the events of this shape at the beginning of a block of whole events.

        Returns:
            The renamed events, their number, and the rest of the block; None if none is proved.
        """
        before, after = self._before, self._after
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
        lines = texts[0] if len(texts) == 1 else b"\n".join(texts)
        if lines.count(b"\n") != len(texts) - 1:
            return None
        if (b'"' in lines or b"\\" in lines) and not _TEXTS.fullmatch(lines):
            return None
        out = b"".join((self._new_before, self._new_glue.join(texts), self._new_after))
        return out, len(texts), rest

    def _texts(self, block: bytes) -> list[bytes] | None:
        """Cut a block, from its first text to its last, into texts; None if other events are in it.

        The same as `block.split(self._glue)`, which is slow if the glue is long: cut at the empty
        lines, remove the bytes around the texts by their length, and compare.
        """
        if _END not in block:
            return [block]
        first, *rest, last = block.split(_END)
        start, end = len(self._before), 2 - len(self._after)
        texts = [first[:end], *[event[start:end] for event in rest], last[start:]]
        return texts if self._glue.join(texts) == block else None
