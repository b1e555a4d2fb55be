"""One scripted answer of a fake upstream, with its faults."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from nexus_gateway.testing.wire import Wire, sse
from nexus_gateway.wire.chunks import Answer, fold

CITIES = ("Paris", "Oslo", "Lima")
COMMENT = b": PROCESSING\n\n"
COMMENT_EVERY_S = 0.1


class Fate(Enum):
    """How an answer ends before it is complete."""

    HANG = "hang"  # nothing more is sent
    CUT = "cut"  # the connection breaks
    END = "end"  # the body ends properly, but early
    ERROR = "error"  # not streamed: status 200 with an error object instead of the answer


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One scripted answer; without arguments a good one.

    The fields `…_after` are numbers of content events.

    Args:
        status: the HTTP status; with any other than 200 the body is `error`.
        error: the error object, also that of `error_after`; None for a generic one.
        headers: additional headers; `content_type` replaces the usual one.
        body: raw bytes, instead of everything below.
        text: the text; each word is one content event.
        model: the value of `model`.
        head_delay_s: seconds before the response's head.
        first_delay_s: seconds between the head and the first content.
        delay_s: seconds between content events.
        role_first: start the stream with an event that has only a role.
        comments: send a comment before each event; `comments_only`: for ever, and no content.
        newline: the line ending.
        bytewise: send each byte separately.
        bom: start the stream with a byte order mark.
        fields: add `id:`, `event:` and `retry:` lines to each event.
        tool_calls: the number of tool calls to send instead of the text (True: one).
        reasoning: send reasoning before the text.
        usage: whether to send the usage chunk; None: if the request asks for it.
        finish: the finish_reason, None to omit it.
        done: end the stream with `[DONE]`.
        reset: reset the connection instead of answering; `hang`: never answer.
        hang_after: stop sending; `cut_after`: break the connection; `end_after`: end the body.
        error_after: send an error event; `garbage_after`: send an event that is not JSON.
        oversized: the size in bytes of an event without content, sent before the first content.
        again: send one more answer, of another text, right behind the answer.
        whole_fate: how an answer that is not streamed ends, after half of its body.
    """

    status: int = 200
    error: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    content_type: str | None = None
    text: str = "Hello from the fake upstream, word by word."
    model: str = "fake-model"
    head_delay_s: float = 0.0
    first_delay_s: float = 0.0
    delay_s: float = 0.0
    role_first: bool = True
    comments: bool = False
    newline: str = "\n"
    bytewise: bool = False
    bom: bool = False
    fields: bool = False
    tool_calls: int = 0
    reasoning: bool = False
    usage: bool | None = None
    finish: str | None = "stop"
    done: bool = True
    reset: bool = False
    hang: bool = False
    hang_after: int | None = None
    cut_after: int | None = None
    end_after: int | None = None
    error_after: int | None = None
    garbage_after: int | None = None
    oversized: int = 0
    comments_only: bool = False
    again: bool = False
    whole_fate: Fate | None = None

    def contents(self) -> list[dict[str, Any]]:
        """Return the chunks that have content, in OpenAI's shape."""
        answer = self._answer()
        reasoning = [answer.reasoning("Hm. ")] if self.reasoning else []
        if self.tool_calls:
            return [*reasoning, *self._calls(answer)]
        words = self.text.split(" ")
        texts = [word if n == 0 else f" {word}" for n, word in enumerate(words)]
        return [*reasoning, *(answer.text(text) for text in texts)]

    def _calls(self, answer: Answer) -> Iterator[dict[str, Any]]:
        for index, city in enumerate(CITIES[: self.tool_calls]):
            yield answer.call(index, f"call_{index + 1}", "get_weather")
            for piece in ('{"ci', f'ty": "{city[:2]}', f'{city[2:]}"}}'):
                yield answer.arguments(index, piece)

    def _answer(self) -> Answer:
        return Answer("chatcmpl-fake", 1_700_000_000, self.model)

    def events(self, wire: Wire, *, usage_wanted: bool) -> Iterator[tuple[float, bytes | Fate]]:
        """Yield the stream's events, each with the seconds to wait before it.

        Args:
            wire: encodes them.
            usage_wanted: whether usage is sent if the script leaves it open.

        Yields:
            Events; last a `Fate` if the script ends the stream early.
        """
        answer = self._answer()
        if self.role_first:
            yield 0.0, self._framed(wire.say(answer.text("")))
        while self.comments_only:
            yield COMMENT_EVERY_S, COMMENT
        if self.oversized:
            yield 0.0, self._framed(sse({**answer.text(""), "padding": "x" * self.oversized}))
        contents = self.contents()
        for number, chunk in enumerate(contents):
            yield from self._interruption(wire, number)
            delay_s = self.delay_s if number else self.first_delay_s
            yield delay_s, self._framed(wire.say(chunk))
        yield from self._interruption(wire, len(contents))
        if self.finish:
            yield 0.0, self._framed(wire.say(answer.finish(self._finish_reason())))
        if usage_wanted if self.usage is None else self.usage:
            yield 0.0, self._framed(wire.say(answer.usage(7, len(contents))))
        if self.done:
            yield 0.0, self._framed(wire.end())

    def _finish_reason(self) -> str:
        return "tool_calls" if self.tool_calls else self.finish or "stop"

    def _interruption(self, wire: Wire, number: int) -> Iterator[tuple[float, bytes | Fate]]:
        """Yield what the script has after this many content events."""
        if self.error_after == number:
            error = self.error or {"message": "Overloaded.", "code": 529}
            yield 0.0, self._framed(wire.error(error))
        if self.garbage_after == number:
            yield 0.0, self._framed(b"data: {not json\n\n")
        fates = {self.hang_after: Fate.HANG, self.cut_after: Fate.CUT, self.end_after: Fate.END}
        if number in fates:
            yield self.delay_s, fates[number]

    def _framed(self, events: bytes) -> bytes:
        """Return events with the script's line endings, comments and additional fields."""
        comment = COMMENT if self.comments else b""
        fields = b"id: 1\nevent: message\nretry: 10\n" if self.fields else b""
        framed = (comment + fields + event + b"\n\n" for event in events.split(b"\n\n") if event)
        return b"".join(framed).replace(b"\n", self.newline.encode())

    def whole(self) -> dict[str, Any]:
        """Return the answer that is not streamed, as OpenAI's completion."""
        answer, contents = self._answer(), self.contents()
        finish, usage = answer.finish(self._finish_reason()), answer.usage(7, len(contents))
        return fold([*contents, finish, usage])

    def failure(self) -> dict[str, Any]:
        """Return the error object of an answer that is not 2xx."""
        generic = {"message": f"Scripted {self.status}.", "type": "fake", "param": None}
        return dict(self.error or {**generic, "code": None})
