"""What the suite sends, and how it reads the gateway's answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nexus_gateway.wire.chunks import fold

KEYS = ("conformance-key-one", "conformance-key-two")
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAA"
    "AABJRU5ErkJggg=="
)
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Returns the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
_FUNCTION = {"name": "get_weather", "arguments": '{"city": "Reykjavik"}'}
CALL_ID = "call00777"  # nine letters and digits: no backend needs another one
_CALL = {"id": CALL_ID, "type": "function", "function": _FUNCTION}
AFTER_A_CALL = [
    {"role": "user", "content": "What is the weather?"},
    {"role": "assistant", "content": None, "tool_calls": [_CALL]},
    {"role": "tool", "tool_call_id": CALL_ID, "content": "Nineteen degrees"},
]
LONG_TALK = [
    {"role": "system", "content": "Speak like a pirate."},
    {"role": "user", "content": "Who discovered Iceland?"},
    {"role": "assistant", "content": "Norsemen, matey."},
    {"role": "user", "content": [{"type": "text", "text": "And who came second?"}]},
]
_IMAGE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
WITH_IMAGE = [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, _IMAGE]}]

# Turns that others wrote: a model with reasoning and citations, a client that marks for a cache.
_MARKED = {"type": "text", "text": "Who came first?", "cache_control": {"type": "ephemeral"}}
_CITATION = {"type": "url_citation", "url_citation": {"url": "https://norse.example", "title": "N"}}
_NULLS = {"refusal": None, "audio": None, "function_call": None}
FOREIGN_TALK: list[dict[str, Any]] = [
    {"role": "user", "content": [_MARKED]},
    {
        "role": "assistant",
        "content": "Norsemen.",
        "reasoning_content": "Who had ships?",
        "annotations": [_CITATION],
        **_NULLS,
    },
    {"role": "user", "content": "And how is the weather there?"},
]
_FOREIGN_ID = "toolu_01A09q90qw90lq917835lq9"
_SIGNATURE = "c2lnbmVkIGVsc2V3aGVyZQ=="
_SIGNED = {"extra_content": {"google": {"thought_signature": _SIGNATURE}}}
_FOREIGN_CALL = {**_CALL, "id": _FOREIGN_ID, **_SIGNED}
# Another model's signed call, and its result: for providers that support tools.
FOREIGN_CALL: list[dict[str, Any]] = [
    {"role": "assistant", "content": None, "tool_calls": [_FOREIGN_CALL], **_NULLS},
    {"role": "tool", "tool_call_id": _FOREIGN_ID, "content": "Nineteen degrees"},
]
# What shows that a field of theirs was sent on.
FOREIGN_MARKS = ("ephemeral", "Who had ships?", "norse.example", _FOREIGN_ID, _SIGNATURE)


@dataclass(frozen=True, slots=True)
class Recording:
    """A recorded answer of the real service, and its content.

    Args:
        body: the bytes of the stream, as received.
        text: its text.
        calls: its tool calls, each with its name and its arguments as an object.
        finish: its finish_reason in OpenAI's terms.
    """

    body: bytes
    text: str = ""
    calls: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    finish: str = "stop"


@dataclass(frozen=True, slots=True)
class Completion:
    """The content of an answer."""

    text: str
    calls: list[dict[str, str]]  # each with `id`, `name` and `arguments` (JSON)
    finish: str | None
    usage: dict[str, Any] | None
    models: set[str]  # the values of `model` in all chunks
    usage_alone: bool  # whether a chunk had only the usage


def read_stream(text: str) -> Completion:
    """Parse a stream; AssertionError if it is incomplete or has an error."""
    events = [event for event in text.split("\n\n") if event and not event.startswith(":")]
    assert events, "the stream is empty"
    assert events[-1] == "data: [DONE]", f"the stream is incomplete: {events[-1]}"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    assert not any("error" in chunk for chunk in chunks)
    _check_indices(chunks)
    alone = any(not chunk["choices"] and chunk.get("usage") for chunk in chunks)
    return _parse(fold(chunks), {chunk["model"] for chunk in chunks}, alone)


def _check_indices(chunks: list[dict[str, Any]]) -> None:
    """Check that each tool call has its own index: clients assemble calls by it."""
    ids: dict[int, str] = {}
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    for call in [call for delta in deltas for call in delta.get("tool_calls") or []]:
        if call.get("id"):
            known = ids.setdefault(call["index"], call["id"])
            assert known == call["id"], f"two calls have the index {call['index']}"


def read_whole(text: str) -> Completion:
    """Parse an answer that is not streamed."""
    completion = json.loads(text)
    assert completion["object"] == "chat.completion"
    return _parse(completion, {completion["model"]}, usage_alone=False)


def _parse(completion: dict[str, Any], models: set[str], usage_alone: bool) -> Completion:
    choice = completion["choices"][0]
    message = choice["message"]
    text, usage = message.get("content") or "", completion.get("usage")
    calls = [{"id": c["id"], **c["function"]} for c in message.get("tool_calls") or []]
    return Completion(text, calls, choice["finish_reason"], usage, models, usage_alone)
