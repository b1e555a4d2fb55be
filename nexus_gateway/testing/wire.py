"""How a fake upstream speaks: a script's chunks, put into bytes.

A test of a provider with a wire format of its own brings its own `Wire`: the reverse of the
provider's translation, for the few things that a script says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nexus_gateway.dialects.messages.response import MessageEncoder, event, message
from nexus_gateway.wire.chunks import Chunk, choices, has_content

if TYPE_CHECKING:
    from nexus_gateway.testing.received import Received


def sse(value: object, name: str = "") -> bytes:
    """Make an event of a JSON value, with an `event:` line where it has a name."""
    line = f"event: {name}\n" if name else ""
    return f"{line}data: {json.dumps(value, separators=(',', ':'))}\n\n".encode()


class Wire:
    """OpenAI's chat completions; one object for each answer. Override what is different."""

    def streams(self, received: Received) -> bool:
        """Tell whether a request asks for a stream."""
        return received.body.get("stream") is True

    def wants_usage(self, received: Received) -> bool:
        """Tell whether a streamed answer shall end with its usage."""
        options = received.body.get("stream_options") or {}
        return options.get("include_usage") is True

    def say(self, chunk: Chunk) -> bytes:
        """Return the events, with LF line ends, that tell one of OpenAI's chunks; or b""."""
        return sse(chunk)

    def end(self) -> bytes:
        """Return the events that end a stream that is whole."""
        return b"data: [DONE]\n\n"

    def error(self, error: Mapping[str, Any]) -> bytes:
        """Return the event that breaks a stream off."""
        return sse({"error": error})

    def whole(self, completion: Chunk) -> Any:
        """Return a whole answer as a JSON value, made from OpenAI's completion."""
        return completion

    def failure(self, error: Mapping[str, Any]) -> Any:
        """Return the body of an answer that is not 2xx."""
        return {"error": error}


class MessagesWire(Wire):
    """Anthropic's Messages."""

    def __init__(self) -> None:
        self._speaker = MessageEncoder(thinking=True)

    def wants_usage(self, received: Received) -> bool:
        """Tell that a message always has its usage."""
        return True

    def say(self, chunk: Chunk) -> bytes:
        """Return a message's events."""
        return self._speaker.encode(chunk)

    def end(self) -> bytes:
        """Return a message's last events."""
        return self._speaker.finish()

    def error(self, error: Mapping[str, Any]) -> bytes:
        """Return an `error` event."""
        return event("error", error={"type": "overloaded_error", **error})

    def whole(self, completion: Chunk) -> Any:
        """Return a message."""
        return message(completion, thinking=True)

    def failure(self, error: Mapping[str, Any]) -> Any:
        """Return an error as Anthropic words it."""
        return {"type": "error", "error": error}


class CountWire(MessagesWire):
    """Anthropic's token count."""

    def whole(self, completion: Chunk) -> Any:
        """Return a count."""
        return {"input_tokens": 7}


def _text_of(completion: Chunk) -> str:
    return str(completion["choices"][0]["message"]["content"])


class CompletionsWire(Wire):
    """OpenAI's older completions."""

    def say(self, chunk: Chunk) -> bytes:
        """Return a chunk with its text in the choice."""
        texts = [
            {
                "index": 0,
                "text": choice["delta"].get("content") or "",
                "finish_reason": choice["finish_reason"],
            }
            for choice in choices(chunk)
        ]
        return sse({**chunk, "object": "text_completion", "choices": texts})

    def whole(self, completion: Chunk) -> Any:
        """Return a completion with its text in the choice."""
        choice = {"index": 0, "text": _text_of(completion), "finish_reason": "stop"}
        return {**completion, "object": "text_completion", "choices": [choice]}


class EmbeddingsWire(Wire):
    """OpenAI's embeddings."""

    def whole(self, completion: Chunk) -> Any:
        """Return one vector."""
        vector = {"object": "embedding", "index": 0, "embedding": [0.25, -0.5]}
        usage = {"prompt_tokens": 7, "total_tokens": 7}
        model = completion["model"]
        return {"object": "list", "data": [vector], "model": model, "usage": usage}


class TranscriptionsWire(Wire):
    """OpenAI's transcriptions."""

    def __init__(self) -> None:
        self._said: list[str] = []

    def streams(self, received: Received) -> bool:
        """Tell whether the form asks for a stream."""
        return b'name="stream"\r\n\r\ntrue' in received.raw

    def wants_usage(self, received: Received) -> bool:
        """Tell that there is no chunk for it."""
        return False

    def say(self, chunk: Chunk) -> bytes:
        """Return a piece of the transcript."""
        pieces = [str(c["delta"].get("content") or "") for c in choices(chunk)]
        if not has_content(chunk) or not any(pieces):
            return b""
        self._said += pieces
        return sse({"type": "transcript.text.delta", "delta": "".join(pieces)})

    def end(self) -> bytes:
        """Return the whole transcript."""
        return sse({"type": "transcript.text.done", "text": "".join(self._said)})

    def whole(self, completion: Chunk) -> Any:
        """Return a transcript."""
        return {"text": _text_of(completion), "usage": {"type": "duration", "seconds": 2}}


# Which wire answers at which end of a path.
WIRES: dict[str, type[Wire]] = {
    "/chat/completions": Wire,
    "/completions": CompletionsWire,
    "/embeddings": EmbeddingsWire,
    "/audio/transcriptions": TranscriptionsWire,
    "/messages/count_tokens": CountWire,
    "/messages": MessagesWire,
}


def wire_for(path: str) -> type[Wire]:
    """Return how the official service at a path speaks."""
    return next((wire for end, wire in WIRES.items() if path.endswith(end)), Wire)
