"""What the fake upstream says: a script for one answer, and its events."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from nexus_gateway.answer import Answer, fold

TOOL_ARGUMENTS = ('{"ci', 'ty": "Pa', 'ris"}')


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
        tool_calls: call a tool instead of saying text.
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
    tool_calls: bool = False
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

    def contents(self) -> list[dict[str, Any]]:
        """Return the chunks that say something."""
        answer = self._answer()
        thoughts = [answer.reasoning("Hm. ")] if self.reasoning else []
        if self.tool_calls:
            call = answer.call(0, "call_1", "get_weather")
            return [*thoughts, call, *(answer.arguments(0, part) for part in TOOL_ARGUMENTS)]
        words = self.text.split(" ")
        texts = [word if n == 0 else f" {word}" for n, word in enumerate(words)]
        return [*thoughts, *(answer.text(text) for text in texts)]

    def _answer(self) -> Answer:
        return Answer("chatcmpl-fake", 1_700_000_000, self.model)

    def events(self, usage_wanted: bool) -> Iterator[tuple[float, bytes]]:
        """Give the stream's events, each with the seconds to wait before it."""
        answer = self._answer()
        if self.role_first:
            role = answer.text("")
            yield 0.0, self._frame(role)
        for number, chunk in enumerate(self.contents()):
            yield from self._interruption(number)
            yield (self.delay_s if number else self.first_delay_s), self._frame(chunk)
        yield from self._interruption(len(self.contents()))
        if self.finish:
            yield 0.0, self._frame(answer.finish("tool_calls" if self.tool_calls else self.finish))
        if usage_wanted if self.usage is None else self.usage:
            yield 0.0, self._frame(answer.usage(7, len(self.contents())))
        if self.done:
            yield 0.0, self._lines("data: [DONE]")

    def _interruption(self, number: int) -> Iterator[tuple[float, bytes]]:
        if self.error_after == number:
            yield 0.0, self._frame({"error": {"message": "Overloaded.", "code": 529}})
        if self.garbage_after == number:
            yield 0.0, self._lines("data: {not json")

    def _frame(self, chunk: Mapping[str, Any]) -> bytes:
        return self._lines("data: " + json.dumps(chunk, separators=(",", ":")))

    def _lines(self, line: str) -> bytes:
        comment = [": PROCESSING", ""] if self.comments else []
        more = ["id: 1", "event: message", "retry: 10"] if self.fields else []
        return (self.newline.join([*comment, *more, line, ""]) + self.newline).encode()

    def whole(self) -> dict[str, Any]:
        """Return the answer as one object."""
        answer = self._answer()
        contents = self.contents()
        finish = "tool_calls" if self.tool_calls else self.finish or "stop"
        return fold([*contents, answer.finish(finish), answer.usage(7, len(contents))])

    def failure(self) -> dict[str, Any]:
        """Return the error body."""
        made_up = {"message": f"Scripted {self.status}.", "type": "fake", "param": None}
        return {"error": dict(self.error or {**made_up, "code": None})}
