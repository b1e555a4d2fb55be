"""What the suite asks: a tool, its result, an image; and answers that were recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
