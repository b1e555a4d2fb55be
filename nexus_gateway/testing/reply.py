"""What the fake upstream says: a script for one answer, and its events."""

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
    """What may become of an answer in its midst."""

    HANG = "hang"
    CUT = "cut"
    END = "end"
    ERROR = "error"  # of an answer in one piece: an error object instead of it, with status 200


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A script for one answer; without arguments a good one.

    Args:
        status: the HTTP status; anything but 200 answers with `error`.
        error: the error object; made up when None.
        headers: more headers.
        body: raw bytes instead of everything below.
        content_type: of the answer, instead of the right one.
        text: the answer, one content event for each word.
        model: what `model` says.
        head_delay_s: before the head.
        first_delay_s: after the head, before the first content.
        delay_s: between content events.
        role_first: begin with an event that holds only a role.
        comments: comments before every event.
        newline: how lines end.
        bytewise: every byte in a write of its own.
        bom: begin with a byte order mark.
        fields: add `id:`, `event:` and `retry:` lines to every event.
        tool_calls: call a tool so many times (True: once) instead of saying text.
        reasoning: think before saying the text.
        usage: send the usage chunk: None when it is asked for.
        finish: the finish_reason, None to leave it out.
        done: end with `[DONE]`.
        reset: break the connection instead of answering.
        hang: never answer.
        hang_after: fall silent after so many content events.
        cut_after: break the connection after so many content events.
        end_after: end the body properly, but early, after so many content events.
        error_after: send an error event after so many content events.
        garbage_after: send an event that is no JSON after so many content events.
        oversized: send an event of so many bytes, which says nothing, before the first content.
        comments_only: send comments for ever instead of content.
        whole_fate: what becomes of an answer in one piece after its half.
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
    whole_fate: Fate | None = None

    def contents(self) -> list[dict[str, Any]]:
        """Return the chunks that say something."""
        answer = self._answer()
        thoughts = [answer.reasoning("Hm. ")] if self.reasoning else []
        if self.tool_calls:
            return [*thoughts, *self._calls(answer)]
        words = self.text.split(" ")
        texts = [word if n == 0 else f" {word}" for n, word in enumerate(words)]
        return [*thoughts, *(answer.text(text) for text in texts)]

    def _calls(self, answer: Answer) -> Iterator[dict[str, Any]]:
        """Give the chunks of the tool calls, their arguments in pieces."""
        for index, city in enumerate(CITIES[: self.tool_calls]):
            yield answer.call(index, f"call_{index + 1}", "get_weather")
            for piece in ('{"ci', f'ty": "{city[:2]}', f'{city[2:]}"}}'):
                yield answer.arguments(index, piece)

    def _answer(self) -> Answer:
        return Answer("chatcmpl-fake", 1_700_000_000, self.model)

    def events(self, wire: Wire, *, usage_wanted: bool) -> Iterator[tuple[float, bytes | Fate]]:
        """Give the stream's events, each with the seconds to wait before it.

        Args:
            wire: how they are spoken.
            usage_wanted: whether usage is sent where the script does not say.

        Returns:
            Events, and what becomes of the stream where the script has that in its midst.
        """
        answer = self._answer()
        if self.role_first:
            yield 0.0, self._dressed(wire.say(answer.text("")))
        while self.comments_only:
            yield COMMENT_EVERY_S, COMMENT
        if self.oversized:
            yield 0.0, self._dressed(sse({**answer.text(""), "padding": "x" * self.oversized}))
        contents = self.contents()
        for number, chunk in enumerate(contents):
            yield from self._interruption(wire, number)
            delay_s = self.delay_s if number else self.first_delay_s
            yield delay_s, self._dressed(wire.say(chunk))
        yield from self._interruption(wire, len(contents))
        if self.finish:
            finish = "tool_calls" if self.tool_calls else self.finish
            yield 0.0, self._dressed(wire.say(answer.finish(finish)))
        if usage_wanted if self.usage is None else self.usage:
            yield 0.0, self._dressed(wire.say(answer.usage(7, len(contents))))
        if self.done:
            yield 0.0, self._dressed(wire.end())

    def _interruption(self, wire: Wire, number: int) -> Iterator[tuple[float, bytes | Fate]]:
        """Give what the script has after so many content events."""
        if self.error_after == number:
            yield 0.0, self._dressed(wire.error({"message": "Overloaded.", "code": 529}))
        if self.garbage_after == number:
            yield 0.0, self._dressed(b"data: {not json\n\n")
        fates = {self.hang_after: Fate.HANG, self.cut_after: Fate.CUT, self.end_after: Fate.END}
        if number in fates:
            yield self.delay_s, fates[number]

    def _dressed(self, events: bytes) -> bytes:
        """Return events with the line ends, comments and further lines of the script."""
        comment = COMMENT if self.comments else b""
        more = b"id: 1\nevent: message\nretry: 10\n" if self.fields else b""
        dressed = b"".join(
            comment + more + event + b"\n\n" for event in events.split(b"\n\n") if event
        )
        return dressed.replace(b"\n", self.newline.encode())

    def whole(self) -> dict[str, Any]:
        """Return the answer as one object."""
        answer = self._answer()
        contents = self.contents()
        finish = "tool_calls" if self.tool_calls else self.finish or "stop"
        return fold([*contents, answer.finish(finish), answer.usage(7, len(contents))])

    def failure(self) -> dict[str, Any]:
        """Return the error of an answer that is not 2xx."""
        made_up = {"message": f"Scripted {self.status}.", "type": "fake", "param": None}
        return dict(self.error or {**made_up, "code": None})
