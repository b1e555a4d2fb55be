"""What the suite asks: a tool, its result, an image; and answers that were recorded.

Read what a gateway answered to a chat completion.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nexus_gateway.wire.chunks import fold


@dataclass(frozen=True, slots=True)
class Told:
    """What an answer says.

    Args:
        text: its text.
        calls: its tool calls, each with `id`, `name` and `arguments` (JSON).
        finish: its finish_reason.
        usage: what was used, None where that is not told.
        models: what `model` says, in all chunks.
        usage_alone: whether a chunk came for the usage alone.
    """

    text: str
    calls: list[dict[str, str]] = field(default_factory=list)
    finish: str | None = None
    usage: dict[str, Any] | None = None
    models: set[str] = field(default_factory=set)
    usage_alone: bool = False


def read_stream(text: str) -> Told:
    """Read a stream; AssertionError where it is not whole or holds an error."""
    events = [event for event in text.split("\n\n") if event and not event.startswith(":")]
    assert events, "the stream is empty"
    assert events[-1] == "data: [DONE]", f"the stream is not whole: {events[-1]}"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    assert not any("error" in chunk for chunk in chunks)
    _check_indices(chunks)
    alone = any(not chunk["choices"] and chunk.get("usage") for chunk in chunks)
    return _told(fold(chunks), {chunk["model"] for chunk in chunks}, alone)


def _check_indices(chunks: list[dict[str, Any]]) -> None:
    """Check that each tool call has an index of its own: by that clients put it together."""
    ids: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            for call in choice["delta"].get("tool_calls") or []:
                if call.get("id"):
                    known = ids.setdefault(call["index"], call["id"])
                    assert known == call["id"], f"two calls have the index {call['index']}"


def read_whole(text: str) -> Told:
    """Read an answer in one piece."""
    completion = json.loads(text)
    assert completion["object"] == "chat.completion"
    return _told(completion, {completion["model"]}, usage_alone=False)


def _told(completion: dict[str, Any], models: set[str], usage_alone: bool) -> Told:
    choice = completion["choices"][0]
    message = choice["message"]
    calls = [{"id": c["id"], **c["function"]} for c in message.get("tool_calls") or []]
    return Told(
        text=message.get("content") or "",
        calls=calls,
        finish=choice["finish_reason"],
        usage=completion.get("usage"),
        models=models,
        usage_alone=usage_alone,
    )


KEYS = ("conformance-key-one", "conformance-key-two")
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAA"
    "AABJRU5ErkJggg=="
)
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
AFTER_A_CALL = [
    {"role": "user", "content": "What is the weather?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_777",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city": "Reykjavik"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_777", "content": "Nineteen degrees"},
]
LONG_TALK = [
    {"role": "system", "content": "Speak like a pirate."},
    {"role": "user", "content": "Who discovered Iceland?"},
    {"role": "assistant", "content": "Norsemen, matey."},
    {"role": "user", "content": [{"type": "text", "text": "And who came second?"}]},
]
WITH_IMAGE = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
        ],
    }
]


@dataclass(frozen=True, slots=True)
class Recording:
    """An answer of the real service, and what it says.

    Args:
        body: the bytes of the stream, as they came.
        text: the text in it.
        calls: the tool calls in it, each with its name and its arguments as an object.
        finish: OpenAI's finish_reason for it.
    """

    body: bytes
    text: str = ""
    calls: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    finish: str = "stop"
