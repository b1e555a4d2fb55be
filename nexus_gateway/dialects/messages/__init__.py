"""Anthropic's Messages: `POST /v1/messages` and `/v1/messages/count_tokens`.

- `request`: a Messages request as a chat
- `response`: a chat's answer as a message
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nexus_gateway.dialects.base import (
    ESTIMATE,
    Dialect,
    FullResponse,
    InvalidAnswer,
    Request,
    StreamEncoder,
)
from nexus_gateway.dialects.body import Body, optional, parse_object, validated
from nexus_gateway.dialects.chat import check_messages, parse_answer
from nexus_gateway.dialects.messages.request import Untranslatable, check, to_chat
from nexus_gateway.dialects.messages.response import UNSIGNED, MessageEncoder, event, message
from nexus_gateway.errors import ErrorEvent, InvalidRequest
from nexus_gateway.wire import json_codec
from nexus_gateway.wire.carried import plain_id
from nexus_gateway.wire.chunks import Chunk
from nexus_gateway.wire.error_objects import normalise_error
from nexus_gateway.wire.passthrough import EventKind, EventPassthrough, Passthrough
from nexus_gateway.wire.usage import count, estimated_tokens

# The caller's headers for the version and for beta features are sent along with its body.
VERSION = "anthropic-version"
_FORWARDED = (VERSION, "anthropic-beta")
_SAFE_VALUE = re.compile(r"[ -~]{1,1000}")
_COUNTED = ("system", "messages", "tools")
_IDS = {"tool_use": "id", "tool_result": "tool_use_id"}
_THINKING_TYPES = frozenset({"enabled", "adaptive", "between_tools"})
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def usage_as_chat(usage: Mapping[str, Any]) -> dict[str, Any]:
    """Translate Anthropic's usage; in a chat, the prompt includes the tokens of the cache."""

    def tokens(name: str) -> int:
        return count(usage.get(name)) or 0

    cached, written = tokens("cache_read_input_tokens"), tokens("cache_creation_input_tokens")
    prompt, completion = tokens("input_tokens") + cached + written, tokens("output_tokens")
    chat: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    if cached or written:
        chat["prompt_tokens_details"] = {"cached_tokens": cached, "cache_write_tokens": written}
    return chat


@dataclass(eq=False, repr=False)
class MessagesPassthrough(EventPassthrough):
    markers = (b"message_start", b"message_delta", b"message_stop", b'"error"')
    _native_usage: dict[str, Any] = field(default_factory=dict)

    def _classify(self, event: dict[str, Any]) -> EventKind:
        kind = event.get("type")
        if kind == "error":
            raise ErrorEvent(normalise_error(event.get("error")))
        if kind in ("message_start", "message_delta"):
            self._note((event.get("message") or event).get("usage"))
        if kind == "message_stop":
            return EventKind.END
        if kind in ("content_block_delta", "message_delta"):
            return EventKind.CONTENT
        block = event.get("content_block") or {}
        return EventKind.CONTENT if block.get("type") == "tool_use" else EventKind.NOTHING

    def _note(self, usage: object) -> None:
        if isinstance(usage, dict):
            self._native_usage |= {k: v for k, v in usage.items() if v is not None}
            self.usage = usage_as_chat(self._native_usage)


class Messages(Dialect):
    endpoint = "messages"
    id_header = "request-id"

    def parse(self, data: bytes, headers: Mapping[str, str]) -> Request:
        """Check a Messages request, and translate it into a chat if possible."""
        fields, model = _parse_checked(data)
        stream = optional(fields, "stream", bool) or False
        native = _native_body(fields, data, model, stream if "stream" in fields else None)
        chat, error = None, None
        try:
            chat = validated(Body(to_chat(fields, stream=stream), stream, len(data)), model)
        except Untranslatable as untranslatable:
            error = untranslatable.error
        images = check_messages(chat.fields["messages"]) if chat else b'"image"' in data
        return Request(
            *(self, model, stream, native, chat, images, error, _forwarded(headers)),
            images_may_go=images and not any(map(_shows_image, fields["messages"])),
        )

    def parse_native(self, body: bytes, content_type: str, label: str | None) -> FullResponse:
        """Check a message; no byte of it is changed."""
        answer = parse_answer(body, "content")
        if answer.get("type") != "message" or not isinstance(answer.get("content"), list):
            raise InvalidAnswer("answered 200 without an answer")
        usage = answer.get("usage")
        return FullResponse(body, usage_as_chat(usage) if isinstance(usage, dict) else {})

    def passthrough(self, request: Request, label: str | None) -> MessagesPassthrough:
        return MessagesPassthrough()

    def encode_full(self, request: Request, completion: Chunk) -> Chunk:
        return message(completion, thinking=_wants_thinking(request), stops=_stops(request))

    def stream_encoder(self, request: Request) -> MessageEncoder:
        return MessageEncoder(_wants_thinking(request), _stops(request))

    def error(self, status: int, body: dict[str, Any]) -> dict[str, Any]:
        """Return an error with Anthropic's type; OpenAI's other fields are kept."""
        kind = _ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
        return {"type": "error", "error": {**body["error"], "type": kind}}

    def error_event(
        self, status: int, body: dict[str, Any], sent: Passthrough | StreamEncoder | None = None
    ) -> bytes:
        """Return the `error` event that ends a stream; the type of an Anthropic backend is kept."""
        error = self.error(status, body)["error"]
        if body["error"].get("type") in _ERROR_TYPES.values():
            error["type"] = body["error"]["type"]
        return event("error", error=error)


class CountTokens(Messages):
    """Counts a Messages request's tokens, or estimates them if no backend offers that."""

    endpoint = "count_tokens"

    def parse(self, data: bytes, headers: Mapping[str, str]) -> Request:
        fields, model = _parse_checked(data)
        error = InvalidRequest("No backend counts tokens.", code="endpoint_not_offered")
        native = _native_body(fields, data, model, None)
        return Request(self, model, False, native, None, False, error, _forwarded(headers))

    def own_answer(self, request: Request) -> FullResponse:
        assert isinstance(request.native, Body)
        fields = request.native.fields
        tokens = estimated_tokens([fields.get(name) for name in _COUNTED])
        return FullResponse(json_codec.dumps({"input_tokens": tokens}), headers={ESTIMATE: "true"})

    def parse_native(self, body: bytes, content_type: str, label: str | None) -> FullResponse:
        count = parse_answer(body, "input_tokens").get("input_tokens")
        if type(count) is not int or count < 0:
            raise InvalidAnswer("answered 200 without a count")
        return FullResponse(body)


def _parse_checked(data: bytes) -> tuple[dict[str, Any], str | None]:
    fields = parse_object(data)
    model = optional(fields, "model", str)
    check(fields)
    return fields, model


def _forwarded(headers: Mapping[str, str]) -> dict[str, str]:
    return {
        name: headers[name] for name in _FORWARDED if _SAFE_VALUE.fullmatch(headers.get(name, ""))
    }


def _native_body(
    fields: dict[str, Any], data: bytes, model: str | None, stream: bool | None
) -> Body:
    """Return the body for an Anthropic backend, without what only the gateway can read.

    Such a backend accepts back only thinking that it has signed, ids that could be its own, and no
    turn that says nothing.
    """
    if UNSIGNED.encode() in data or b"tool_" in data:
        turns = [(m, _plain(m["content"])) for m in fields["messages"]]
        messages = [{**m, "content": now} for m, now in turns if now or not m["content"]]
        fields = {**fields, "messages": messages}
    return validated(Body(fields, stream, len(data)), model)


def _plain(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    return [_with_plain_id(block) for block in content if block.get("signature") != UNSIGNED]


def _with_plain_id(block: Mapping[str, Any]) -> Mapping[str, Any]:
    name = _IDS.get(block["type"], "")
    return {**block, name: plain_id(block[name])} if isinstance(block.get(name), str) else block


def _shows_image(message: Mapping[str, Any]) -> bool:
    """Return whether a message has an image that is not in the result of a tool."""
    blocks = message["content"] if isinstance(message["content"], list) else []
    sources = (block.get("source") for block in blocks)
    return any(block["type"] == "image" for block in blocks) or any(
        isinstance(source, dict) and source.get("type") == "content" for source in sources
    )


def _wants_thinking(request: Request) -> bool:
    """Return whether the caller asked for the model's thinking."""
    fields = request.native.fields if isinstance(request.native, Body) else {}
    return (fields.get("thinking") or {}).get("type") in _THINKING_TYPES


def _stops(request: Request) -> tuple[str, ...]:
    fields = request.native.fields if isinstance(request.native, Body) else {}
    stops = fields.get("stop_sequences")
    return tuple(stop for stop in stops if isinstance(stop, str)) if stops else ()


MESSAGES = Messages()
COUNT_TOKENS = CountTokens()
