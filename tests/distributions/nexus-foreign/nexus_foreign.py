"""A provider with a wire format of its own: named events, text blocks, another key header."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from nexus_gateway.provider import Call, HttpRequest, Model, Translator, json_request
from nexus_gateway.secret import Secret
from nexus_gateway.wire.chunks import Answer
from nexus_gateway.wire.sse import Event

REASONS = {"end_turn": "stop", "max_tokens": "length"}
MOST_TOKENS = 1_024


class Foreign(Translator):
    """A backend that takes the system prompt apart and streams blocks."""

    title = "Foreign"
    base_url = "http://127.0.0.1:9"
    default_model = "foreign-1"
    models = (Model("foreign-1", context=8_192),)

    def authorize(self, key: Secret) -> dict[str, str]:
        """Return the headers that carry the key."""
        return {"x-api-key": key.reveal()}

    def encode(self, call: Call) -> HttpRequest:
        """Make the request: system messages stand apart, and a bound is always given."""
        messages = call.chat["messages"]
        system = " ".join(m["content"] for m in messages if m["role"] == "system")
        payload = {
            "model": call.model,
            "max_tokens": call.chat.get("max_tokens") or MOST_TOKENS,
            "messages": [m for m in messages if m["role"] != "system"],
            "stream": True,
        }
        if system:
            payload["system"] = system
        return json_request(call, "/messages", payload, self.authorize(call.key))

    async def stream(
        self, events: AsyncIterator[Event], answer: Answer
    ) -> AsyncIterator[dict[str, Any]]:
        """Turn the backend's events into chunks; what is not known is passed over."""
        asked = said = 0
        reason = "stop"
        async for event in events:
            data = json.loads(event.data) if event.data else {}
            match event.name:
                case "message_start":
                    asked = data["usage"]["input_tokens"]
                case "content_block_delta":
                    yield answer.text(data["delta"]["text"])
                case "message_delta":
                    reason = REASONS.get(data["stop_reason"], "stop")
                    said = data["usage"]["output_tokens"]
                case "error":
                    yield {"error": data["error"]}
                case "message_stop":
                    yield answer.finish(reason)
                    yield answer.usage(asked, said)
