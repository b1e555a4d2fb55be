"""Anthropic's Messages: the dialect of `POST /v1/messages` and of `/v1/messages/count_tokens`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from nexus_gateway.dialects.base import Dialect, FullResponse, InvalidAnswer, Request
from nexus_gateway.dialects.body import Body, optional, parse_object, validated
from nexus_gateway.dialects.chat import answered, check_messages
from nexus_gateway.dialects.messages import request as asked
from nexus_gateway.dialects.messages.response import UNSIGNED, MessageSpeaker, event, message
from nexus_gateway.errors import ErrorEvent, InvalidRequest
from nexus_gateway.wire.chunks import Chunk
from nexus_gateway.wire.error_objects import normalise_error
from nexus_gateway.wire.passthrough import EventKind, EventPassthrough

# The caller's word on the version and on features under trial goes along with its body.
_PASSED = ("anthropic-version", "anthropic-beta")
_SANE = re.compile(r"[ -~]{1,1000}")
_THINKS = frozenset({"enabled", "adaptive", "between_tools"})
_TYPES = {
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


def usage_as_chat(used: Mapping[str, Any]) -> dict[str, Any]:
    """Put Anthropic's usage into a chat's: there the prompt counts what came from a cache too."""
    cached = used.get("cache_read_input_tokens") or 0
    written = used.get("cache_creation_input_tokens") or 0
    prompt = (used.get("input_tokens") or 0) + cached + written
    completion = used.get("output_tokens") or 0
    whole: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    if not (cached or written):
        return whole
    details = {"cached_tokens": cached, "cache_write_tokens": written}
    return {**whole, "prompt_tokens_details": details}


class MessagesPassage(EventPassthrough):
    """Watches a message that passes as it is."""

    markers = (b"message_start", b"message_delta", b"message_stop", b'"error"')

    def __init__(self) -> None:
        super().__init__()
        self._used: dict[str, Any] = {}

    def _classify(self, value: dict[str, Any]) -> EventKind:
        kind = value.get("type")
        if kind == "error":
            raise ErrorEvent(normalise_error(value.get("error")))
        if kind in ("message_start", "message_delta"):
            self._note((value.get("message") or value).get("usage"))
        if kind == "message_stop":
            return EventKind.END
        if kind == "content_block_delta" or (kind == "message_delta"):
            return EventKind.CONTENT
        block = value.get("content_block") or {}
        return EventKind.CONTENT if block.get("type") == "tool_use" else EventKind.NOTHING

    def _note(self, used: object) -> None:
        if isinstance(used, dict):
            self._used |= {k: v for k, v in used.items() if v is not None}
            self.usage = usage_as_chat(self._used)


class Messages(Dialect):
    """Messages, streamed and whole."""

    endpoint = "messages"
    id_header = "request-id"

    def parse(self, data: bytes, headers: Mapping[str, str]) -> Request:
        """Check a Messages body, and put it into a chat's words where that can be done."""
        fields = parse_object(data)
        model = optional(fields, "model", str, "a string")
        stream = optional(fields, "stream", bool, "true or false") or False
        asked.check(fields)
        own = _own(fields, data, model, stream if "stream" in fields else None)
        chat, obstacle = None, None
        try:
            chat = validated(Body(asked.to_chat(fields, stream=stream), stream), model)
        except asked.Untranslatable as error:
            obstacle = error.error
        images = check_messages(chat.fields["messages"]) if chat else b'"image"' in data
        return Request(self, model, stream, own, chat, images, obstacle, passed(headers))

    def parse_native(
        self, request: Request, body: bytes, content_type: str, label: str | None
    ) -> FullResponse:
        """Check a message; not a byte of it is changed."""
        answer = answered(body)
        if answer.get("type") != "message" or not isinstance(answer.get("content"), list):
            raise InvalidAnswer("answered 200 without an answer")
        used = answer.get("usage")
        return FullResponse(body, usage_as_chat(used) if isinstance(used, dict) else {})

    def event_filter(self, request: Request, label: str | None) -> MessagesPassage:
        """Watch a stream of named events; not a byte of it is changed."""
        return MessagesPassage()

    def encode_full(self, request: Request, completion: Chunk) -> Chunk:
        """Return the completion as a message."""
        return message(completion, thinking=_thinks(request))

    def stream_encoder(self, request: Request) -> MessageSpeaker:
        """Return what tells chunks as a message's events."""
        return MessageSpeaker(_thinks(request))

    def error(self, status: int, body: dict[str, Any]) -> dict[str, Any]:
        """Return an error as Anthropic words it; OpenAI's fields stay beside."""
        error = body["error"]
        kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
        return {"type": "error", "error": {**error, "type": kind}}

    def error_event(self, status: int, body: dict[str, Any]) -> bytes:
        """Return the `error` event that ends a stream; an Anthropic backend's keeps its type."""
        told = self.error(status, body)["error"]
        if body["error"].get("type") in _TYPES.values():
            told = {**told, "type": body["error"]["type"]}
        return event("error", error=told)


class CountTokens(Messages):
    """How many tokens a Messages request has: only a backend of Anthropic's kind can tell."""

    endpoint = "count_tokens"

    def parse(self, data: bytes, headers: Mapping[str, str]) -> Request:
        """Check the body; it goes as it is or not at all."""
        fields = parse_object(data)
        model = optional(fields, "model", str, "a string")
        asked.check(fields)
        own = _own(fields, data, model, None)
        obstacle = InvalidRequest(
            "Tokens can only be counted by a backend that speaks Anthropic's Messages, and none "
            "that `model` may mean is configured; estimate them yourself.",
            code="endpoint_not_offered",
        )
        return Request(self, model, False, own, untranslatable=obstacle, headers=passed(headers))

    def parse_native(
        self, request: Request, body: bytes, content_type: str, label: str | None
    ) -> FullResponse:
        """Check the count."""
        count = answered(body).get("input_tokens")
        if type(count) is not int or count < 0:
            raise InvalidAnswer("answered 200 without a count")
        return FullResponse(body)


def passed(headers: Mapping[str, str]) -> dict[str, str]:
    """Return those of a caller's headers that go along with a Messages body."""
    return {name: headers[name] for name in _PASSED if _SANE.fullmatch(headers.get(name, ""))}


def _own(fields: dict[str, Any], data: bytes, model: str | None, stream: bool | None) -> Body:
    """Return the body as it may go to a backend of Anthropic's kind."""
    sealed = _without_unsealed(fields) if UNSIGNED.encode() in data else fields
    return validated(Body(sealed, stream), model)


def _thinks(request: Request) -> bool:
    """Tell whether the caller asked to see the model think."""
    fields = request.native.fields if isinstance(request.native, Body) else {}
    return (fields.get("thinking") or {}).get("type") in _THINKS


def _without_unsealed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out thinking of ours: Anthropic takes back only what it has signed itself."""

    def kept(content: object) -> object:
        if not isinstance(content, list):
            return content
        return [block for block in content if block.get("signature") != UNSIGNED]

    messages = [{**m, "content": kept(m.get("content"))} for m in fields["messages"]]
    return {**fields, "messages": messages}


MESSAGES = Messages()
COUNT_TOKENS = CountTokens()
