"""A request as a fake upstream receives it, and how the upstream encodes its answers.

For a provider with its own wire format write a `Wire`: the reverse of the provider's translation,
for the few features that a `Reply` uses.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nexus_gateway.dialects.messages.response import MessageEncoder, event, message
from nexus_gateway.dialects.responses.response import ResponseEncoder, to_response
from nexus_gateway.wire import json_codec
from nexus_gateway.wire.chunks import Chunk, choices, has_content, new_id


@dataclass
class Received:
    """A received request, and whether it was answered.

    Attributes:
        key: the key in its headers, "" if there is none.
        headers: all of its headers.
        raw: its body.
        path: its path, without the query.
        target: its path as sent, with the query.
        finished: whether the answer was sent completely.
        left: set if the client disconnected before that.
    """

    key: str
    headers: dict[str, str]
    raw: bytes
    path: str
    target: str = ""
    finished: bool = False
    left: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def body(self) -> dict[str, Any]:
        """The parsed body; ValueError if it is not JSON."""
        parsed: dict[str, Any] = json_codec.loads(self.raw)
        return parsed

    async def gone(self, within_s: float = 30.0) -> bool:
        """Wait until the client disconnects before its answer is complete; False if it does not."""
        try:
            await asyncio.wait_for(self.left.wait(), within_s)
        except TimeoutError:
            return False
        return True


def sse(value: object, name: str = "") -> bytes:
    """Encode a JSON value as an event, with an `event:` line if it has a name."""
    line = f"event: {name}\n" if name else ""
    return f"{line}data: {json.dumps(value, separators=(',', ':'))}\n\n".encode()


class Wire:
    """Encodes one answer as OpenAI's chat completions do. Override what differs."""

    def streams(self, received: Received) -> bool:
        """Return whether a request asks for a stream."""
        return received.body.get("stream") is True

    def wants_usage(self, received: Received) -> bool:
        """Return whether a streamed answer ends with its usage."""
        options = received.body.get("stream_options") or {}
        return options.get("include_usage") is True

    def say(self, chunk: Chunk) -> bytes:
        """Return the events for one of OpenAI's chunks, with LF line endings; b"" for none."""
        return sse(chunk)

    def end(self) -> bytes:
        """Return the events at the end of a complete stream."""
        return b"data: [DONE]\n\n"

    def error(self, error: Mapping[str, Any]) -> bytes:
        """Return the event that ends a stream with an error."""
        return sse({"error": error})

    def whole(self, completion: Chunk) -> Any:
        """Return the body of an answer that is not streamed, as a JSON value."""
        return completion

    def failure(self, error: Mapping[str, Any]) -> Any:
        """Return the body of an answer that is not 2xx, as a JSON value."""
        return {"error": error}


class MessagesWire(Wire):
    """Anthropic's Messages."""

    def __init__(self) -> None:
        self._encoder = MessageEncoder(thinking=True)

    def wants_usage(self, received: Received) -> bool:
        return True

    def say(self, chunk: Chunk) -> bytes:
        return self._encoder.encode(chunk)

    def end(self) -> bytes:
        return self._encoder.finish()

    def error(self, error: Mapping[str, Any]) -> bytes:
        return event("error", error={"type": "overloaded_error", **error})

    def whole(self, completion: Chunk) -> Any:
        return message(completion, thinking=True)

    def failure(self, error: Mapping[str, Any]) -> Any:
        return {"type": "error", "error": error}


class ResponsesWire(Wire):
    """OpenAI's Responses."""

    def __init__(self) -> None:
        self._own = {"id": new_id()}  # callers refer to it
        self._encoder = ResponseEncoder(self._own)

    def wants_usage(self, received: Received) -> bool:
        return True

    def say(self, chunk: Chunk) -> bytes:
        return self._encoder.encode(chunk)

    def end(self) -> bytes:
        return self._encoder.finish()

    def error(self, error: Mapping[str, Any]) -> bytes:
        return sse({"type": "error", **error}, "error")

    def whole(self, completion: Chunk) -> Any:
        return to_response(self._own, completion)


class CountWire(MessagesWire):
    """Anthropic's token count."""

    def whole(self, completion: Chunk) -> Any:
        return {"input_tokens": 7}


def _text_of(completion: Chunk) -> str:
    return str(completion["choices"][0]["message"]["content"])


class CompletionsWire(Wire):
    """OpenAI's legacy completions."""

    def say(self, chunk: Chunk) -> bytes:
        texts = [
            {
                "index": 0,
                "text": c["delta"].get("content") or "",
                "finish_reason": c["finish_reason"],
            }
            for c in choices(chunk)
        ]
        return sse({**chunk, "object": "text_completion", "choices": texts})

    def whole(self, completion: Chunk) -> Any:
        choice = {"index": 0, "text": _text_of(completion), "finish_reason": "stop"}
        return {**completion, "object": "text_completion", "choices": [choice]}


class EmbeddingsWire(Wire):
    """OpenAI's embeddings."""

    def whole(self, completion: Chunk) -> Any:
        vector = {"object": "embedding", "index": 0, "embedding": [0.25, -0.5]}
        usage = {"prompt_tokens": 7, "total_tokens": 7}
        model = completion["model"]
        return {"object": "list", "data": [vector], "model": model, "usage": usage}


class TranscriptionsWire(Wire):
    """OpenAI's transcriptions."""

    def __init__(self) -> None:
        self._pieces: list[str] = []

    def streams(self, received: Received) -> bool:
        return b'name="stream"\r\n\r\ntrue' in received.raw

    def wants_usage(self, received: Received) -> bool:
        return False

    def say(self, chunk: Chunk) -> bytes:
        pieces = [str(c["delta"].get("content") or "") for c in choices(chunk)]
        if not has_content(chunk) or not any(pieces):
            return b""
        self._pieces += pieces
        return sse({"type": "transcript.text.delta", "delta": "".join(pieces)})

    def end(self) -> bytes:
        return sse({"type": "transcript.text.done", "text": "".join(self._pieces)})

    def whole(self, completion: Chunk) -> Any:
        return {"text": _text_of(completion), "usage": {"type": "duration", "seconds": 2}}


# By the end of a path.
WIRES: dict[str, type[Wire]] = {
    "/chat/completions": Wire,
    "/completions": CompletionsWire,
    "/embeddings": EmbeddingsWire,
    "/audio/transcriptions": TranscriptionsWire,
    "/messages/count_tokens": CountWire,
    "/messages": MessagesWire,
    "/responses": ResponsesWire,
}


def wire_for(path: str) -> type[Wire]:
    """Return the wire of the official service at a path."""
    return next((wire for end, wire in WIRES.items() if path.endswith(end)), Wire)
