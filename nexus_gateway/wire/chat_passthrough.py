"""Pass an OpenAI stream through: whole events, untouched but for the value of `model`.

Three speeds. Events that differ from one already seen in nothing but what they say are proved and
renamed together (`template`). A block of events is *plain* when a few scans prove that each event
is one line `data: {…}` with the model's name where the first one had it, and that none carries an
error or a usage chunk: then one `replace` over the whole block is all that is done. Whatever is
not plain goes event by event, and only an event that is not plain by itself is parsed.

Nothing leaves before the first content (text, reasoning, a tool call, a finish): till then an
upstream can still fail without anybody having seen it.

The shape that a stream's events share, learnt from one of them.

A model's events are the same bytes over and over, but for one string: what it says. Once an event
has been parsed and found good, any other that differs from it only inside that string is good as
well, and needs no look of its own: it has the same names, the same choices, no error, no finish.
So a whole block of such events is proved by cutting it at what stands between two texts, and
renamed by gluing it together again with the other model's name.
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

_SAID = re.compile(
    rb'"(?:content|reasoning_content|reasoning|arguments|text)"\s*:\s*"((?:[^"\\]|\\.)+)"'
)
# Texts, one a line, in which nothing ends the string that they stand in.
_TEXTS = re.compile(rb'(?:[^"\\\n]++|\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4})|\n)*+')
_END = b"\n\n"


class EventTemplate:
    """What is around the text in each event.

    Args:
        before: from the event's beginning to the text.
        after: from the text to the event's end, with the empty line.
        new_before: what goes out for `before`.
        new_after: what goes out for `after`.
    """

    __slots__ = ("_after", "_before", "_glue", "_new_after", "_new_before", "_new_glue")

    def __init__(self, before: bytes, after: bytes, new_before: bytes, new_after: bytes) -> None:
        self._before, self._after, self._glue = before, after, after + before
        self._new_before, self._new_after = new_before, new_after
        self._new_glue = new_after + new_before

    def apply_to_one(self, event: bytes) -> bytes | None:
        """Rename one event, where its text is plain; None where it takes a closer look."""
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
        """Rename the events of this shape with which a block of whole events begins.

        Returns:
            What goes out for them, how many there are, and the rest of the block; None where
            none is proved.
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
        said = texts[0] if len(texts) == 1 else b"\n".join(texts)
        if said.count(b"\n") != len(texts) - 1:
            return None
        if (b'"' in said or b"\\" in said) and not _TEXTS.fullmatch(said):
            return None
        out = b"".join((self._new_before, self._new_glue.join(texts), self._new_after))
        return out, len(texts), rest

    def _texts(self, block: bytes) -> list[bytes] | None:
        """Cut a block, from its first text to its last, into its texts; None if others are in it.

        As `block.split(self._glue)`, which is slow where the glue is long: cut at the empty lines,
        take what is around the texts off by its length, and see whether it was that.
        """
        if _END not in block:
            return [block]
        first, *rest, last = block.split(_END)
        start, end = len(self._before), 2 - len(self._after)
        texts = [first[:end], *[event[start:end] for event in rest], last[start:]]
        return texts if self._glue.join(texts) == block else None


def learn(data: bytes, span: tuple[int, int] | None, model: bytes | None) -> EventTemplate | None:
    """Learn from one event.

    Args:
        data: its data, a JSON object in one line that says something and ends nothing.
        span: where the value of `model` stands in it; None where there is none.
        model: what `model` shall say, as JSON; None to leave it.

    Returns:
        The template; None where the event has no text that could be told from the rest.
    """
    said = _SAID.search(data)
    if said is None:
        return None
    start, end = said.span(1)
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
    return EventTemplate(before, after, new_before, new_after)


# How often the shape of events is learnt; where they have none in common, it is given up.
MAX_TEMPLATES = 4
_TOKEN = re.compile(rb'"((?:[^"\\]|\\.)*)"|[{}\[\]]')
# Names and plain values up to the model's: as nearly everybody writes a chunk.
_MODEL_EARLY = re.compile(
    rb'\s*\{\s*(?:"(?!model")[^"\\]*"\s*:\s*(?:"[^"\\]*"|[-+.0-9a-zA-Z]+)\s*,\s*)*+'
    rb'"model"\s*:\s*("(?:[^"\\]|\\.)*"|null|true|false|-?[0-9][0-9.eE+-]*)'
)
_VALUE = re.compile(rb'\s*:\s*("(?:[^"\\]|\\.)*"|null|true|false|-?[0-9][0-9.eE+-]*)')
_DATA = b"data: "
_START = b"data: {"
_GLUE = b"\n\n" + _START
_FINISHED = (b'"finish_reason":"', b'"finish_reason": "')


def find_model(text: bytes) -> tuple[int, int] | None:
    """Find the value of the top level's `model` in a JSON object; None when there is none.

    Returns:
        Where the value starts and ends, quotes included.
    """
    early = _MODEL_EARLY.match(text)
    if early is not None:
        return early.span(1)
    depth = 0
    for token in _TOKEN.finditer(text):
        mark = token.group()
        if mark in (b"{", b"["):
            depth += 1
        elif mark in (b"}", b"]"):
            depth -= 1
        elif depth == 1 and token.group(1) == b"model":
            value = _VALUE.match(text, token.end())
            if value:
                return value.span(1)
    return None


def set_model(text: bytes, model: bytes | None, span: tuple[int, int] | None = None) -> bytes:
    """Return a JSON object's bytes with `model` (a JSON string) as its model, added if absent.

    Args:
        text: the object.
        model: what it shall say; None to leave it.
        span: where `find_model` has found it, to save looking once more.
    """
    if model is None:
        return text
    span = span or find_model(text)
    if span:
        return text[: span[0]] + model + text[span[1] :]
    start = text.index(b"{") + 1
    comma = b"" if text[start:].lstrip().startswith(b"}") else b","
    return text[:start] + b'"model":' + model + comma + text[start:]


def _all_have_choices(block: bytes, events: int) -> bool:
    """Tell whether none of a block's events can be there for its usage alone."""
    if b'"usage":' not in block:
        return True
    return block.count(b'"choices":[{') + block.count(b'"choices": [{') == events


class ChatPassthrough(Passthrough):
    """One stream's way through.

    Args:
        model: what `model` shall say, or None to leave it as the upstream has it.
        usage_wanted: whether the caller asked for the usage chunk.

    Attributes:
        events: how many events with content were passed, about one a token.
    """

    def __init__(self, model: str | None, usage_wanted: bool) -> None:
        super().__init__()
        self.events = 0
        self._finished = False
        self._usage_wanted = usage_wanted
        self._model = json_codec.dumps(model) if model is not None else None
        self._needle = b""
        self._exchange = b""
        self._usage_block = b""
        self._template: EventTemplate | None = None
        self._lessons = MAX_TEMPLATES

    def _ended_early(self, late: bytes) -> bytes:
        """End an answer that was finished and only lacks its `[DONE]`."""
        if not self._finished:
            raise TruncatedStream("The upstream cut the answer off.")
        self.done = True
        return late + sse.DONE

    def used(self) -> Mapping[str, Any]:
        """Return the usage: as the upstream counts, else the events with content as tokens."""
        if self._usage_block:
            # These events have passed unparsed: what is wrong with them can hurt nobody any more.
            with contextlib.suppress(BrokenStream):
                for event in sse.split(self._usage_block):
                    self._note_usage(self._parse(event.removeprefix(b"data: ")))
        return counted(self.usage, self.events)

    def _is_plain(self, block: bytes) -> bool:
        events = block.count(_GLUE) + 1
        return (
            block.startswith(_START)
            and block.count(b"\n") == 2 * events
            and block.count(self._needle) == events
            and b'"error"' not in block
            and b'"choices":[]' not in block
            and b'"choices": []' not in block
            and (self._usage_wanted or _all_have_choices(block, events))
            and (self._needle is not _START or b'"model"' not in block)
        )

    def feed(self, data: bytes) -> bytes:
        """Take what came; mostly it is one event, and like the others."""
        template = self._template
        if template is not None and self._framer.between and not (self.done or self.broken):
            passed = template.apply_to_one(data)
            if passed is not None:
                self.events += 1
                return passed
        return super().feed(data)

    def _fast_path(self, block: bytes) -> bytes | None:
        """Pass a block that begins with events of the known shape, or that is plain."""
        found = None if self._template is None else self._template.apply(block)
        if found is None:
            # One more of the first events may teach what the others are like.
            return None if self._lessons else self._pass_plain(block)
        out, count, rest = found
        self.events += count
        if not rest:
            return out
        passed = self._pass_plain(rest)
        return out + (self._slow_path(rest) if passed is None else passed)

    def _pass_plain(self, block: bytes) -> bytes | None:
        """Pass a block that is plain, but for the `[DONE]` at its end; None where it is not."""
        if self._is_plain(block):
            return self._pass(block)
        if block.endswith(sse.DONE) and self._is_plain(block[: -len(sse.DONE)]):
            return self._pass(block[: -len(sse.DONE)]) + self._finish()
        return None

    def _pass(self, block: bytes) -> bytes:
        self.events += block.count(_GLUE) + 1
        if not self._finished and (_FINISHED[0] in block or _FINISHED[1] in block):
            self._finished = True
        # Where usage is asked for, most upstreams write `"usage":null` into all the other events.
        if b'"usage":' in block and (b'"usage":{' in block or b'"usage": {' in block):
            self._usage_block = block
        return block if self._model is None else block.replace(self._needle, self._exchange)

    def _pass_one(self, event: bytes) -> bytes:
        whole = event + b"\n\n"
        known = self.started and not self._lessons and self._is_plain(whole)
        return self._pass(whole) if known else self._examine(event)

    def _examine(self, event: bytes) -> bytes:
        """Look into one event and return it as it may go out."""
        if event.startswith(_START) and b"\n" not in event:
            return self._examine_data(event[len(_DATA) :])
        fields = [line.partition(b":") for line in event.split(b"\n")]
        data = [value.removeprefix(b" ") for name, _, value in fields if name == b"data"]
        # A line end inside JSON is white space between tokens, so a blank may stand for it.
        text = b" ".join(data).strip()
        if not text:
            return self._hold(sse.comment_lines(event))
        return self._finish() if text == b"[DONE]" else self._examine_data(text)

    def _examine_data(self, text: bytes) -> bytes:
        chunk = self._parse(text)
        self._note_usage(chunk)
        if is_usage_only(chunk) and not self._usage_wanted:
            return b""
        ends = finished(chunk)
        self._finished = self._finished or ends
        span = find_model(text)
        if has_content(chunk):
            self.events += 1
            self._begin(text, span)
            if self._lessons and not ends:
                self._lessons -= 1
                self._knowledge += 1
                if not isinstance(chunk.get("usage"), dict):
                    self._template = learn(text, span, self._model)
        return self._hold(sse.frame(set_model(text, self._model, span)))

    def _finish(self) -> bytes:
        if not self.started:
            raise TruncatedStream("The upstream ended its answer before it began.")
        self.done = True
        return sse.DONE

    def _parse(self, text: bytes) -> dict[str, Any]:
        try:
            chunk = json_codec.loads(text)
        except json_codec.JSONError:
            chunk = None
        if not isinstance(chunk, dict):
            raise BrokenStream("The upstream sent something that is not an answer.")
        if chunk.get("error"):
            raise ErrorEvent(normalise_error(chunk["error"]))
        return chunk

    def _note_usage(self, chunk: dict[str, Any]) -> None:
        if isinstance(chunk.get("usage"), dict):
            self.usage, self._usage_block = chunk["usage"], b""

    def _begin(self, text: bytes, span: tuple[int, int] | None) -> None:
        """Learn from the first content how this upstream writes `model`."""
        if self.started:
            return
        self.started = True
        if span:
            key = text.rindex(b'"model"', 0, span[0])
            self._needle = text[key : span[1]]
            self._exchange = text[key : span[0]] + (self._model or b"")
        else:
            self._needle = _START
            self._exchange = _START + b'"model":' + (self._model or b"") + b","
