"""OpenAI's chat completions, the inner form of all chats, and its older completions of a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nexus_gateway.dialects.base import Dialect, FullResponse, InvalidAnswer, Request
from nexus_gateway.dialects.body import (
    Body,
    missing,
    optional,
    parse_object,
    text_or_list,
    typed,
    validated,
    wrong_type,
)
from nexus_gateway.errors import InvalidRequest
from nexus_gateway.provider import CHAT
from nexus_gateway.wire import json_codec, sse
from nexus_gateway.wire.chunks import Chunk, Progress, choices, is_empty, is_usage_only, raise_error
from nexus_gateway.wire.passthrough import ChatPassthrough, set_model

_IMAGE_PARTS = frozenset({"image_url", "input_image", "image"})


class Completions(Dialect):
    """`POST /v1/completions`: passed to backends that offer it, never translated."""

    endpoint = "completions"
    kind = "completions"
    has_stream_options = True

    def parse(self, data: bytes, headers: Mapping[str, str]) -> Request:
        fields, model, stream = _parse_common(data)
        text_or_list(fields, "prompt")
        stream = stream or False
        return Request(self, model, stream, validated(Body(fields, stream, len(data)), model))

    def parse_native(self, body: bytes, content_type: str, label: str | None) -> FullResponse:
        answer = completed(body)
        return FullResponse(
            labelled(body, answer, label),
            usage_in(answer),
            is_empty=all(map(is_empty, choices(answer))),
        )

    def passthrough(self, request: Request, label: str | None) -> ChatPassthrough:
        return ChatPassthrough(label, request.native.asks_usage)


class ChatCompletions(Completions):
    """`POST /v1/chat/completions`: the inner form itself."""

    endpoint = CHAT
    kind = CHAT

    def parse(self, data: bytes, headers: Mapping[str, str]) -> Request:
        fields, model, stream = _parse_common(data)
        images = check_messages(fields.get("messages"))
        stream = stream if stream is not None else model is None
        body = validated(Body(fields, stream, len(data)), model)
        may_go = images and not check_messages([m for m in fields["messages"] if not _is_result(m)])
        return Request(self, model, stream, body, body, images, images_may_go=may_go)

    def encode_full(self, request: Request, completion: Chunk) -> Chunk:
        return completion

    def stream_encoder(self, request: Request) -> ChatEncoder:
        return ChatEncoder(request.native.asks_usage)


@dataclass(frozen=True, slots=True)
class ChatEncoder:
    """Encodes chunks as they are; a usage chunk only if the caller asked for it."""

    usage_wanted: bool

    def encode(self, chunk: Chunk) -> bytes:
        if is_usage_only(chunk) and not self.usage_wanted:
            return b""
        return sse.json_event(chunk)

    def finish(self) -> bytes:
        return sse.DONE


def _parse_common(data: bytes) -> tuple[dict[str, Any], str | None, bool | None]:
    """Check the fields that the gateway itself reads; every other one is passed on."""
    fields = parse_object(data)
    model, stream = optional(fields, "model", str), optional(fields, "stream", bool)
    optional(fields, "stream_options", dict)
    return fields, model, stream


def completed(body: bytes) -> Chunk:
    """Parse a completion; InvalidAnswer if it is none, ErrorEvent if it is an error."""
    answer = parse_answer(body, "choices")
    Progress().take(answer)
    if not choices(answer):
        raise InvalidAnswer("answered 200 without an answer")
    return answer


def parse_answer(body: bytes, content: str) -> dict[str, Any]:
    """Parse the body of a 200; InvalidAnswer if it is not a JSON object, ErrorEvent if an error.

    `content` is the field that has what was asked for; without it a message is an error.
    """
    try:
        answer = json_codec.loads(body)
    except json_codec.JSONError:
        raise InvalidAnswer("answered with something that is not JSON") from None
    if isinstance(answer, list) and answer and isinstance(answer[0], dict):  # Gemini's errors
        answer = answer[0]
    if not isinstance(answer, dict):
        raise InvalidAnswer("answered 200 without an answer")
    raise_error(answer, has_content=bool(answer.get(content)))
    return answer


def usage_in(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an answer's usage, empty if it has none."""
    usage = answer.get("usage")
    return usage if isinstance(usage, dict) else {}


def labelled(body: bytes, answer: Mapping[str, Any], label: str | None) -> bytes:
    """Return an answer's bytes with the instance's name as its `model`; None keeps its own."""
    return body if label is None else set_model(body, answer, json_codec.dumps(label))


def check_messages(messages: object) -> bool:
    """Check a chat's messages; return whether one contains an image."""
    if messages is None:
        missing("messages")
    messages = typed(messages, list, "messages")
    if not messages:
        raise InvalidRequest("`messages` must not be empty.", param="messages")
    has_image = False
    for i, message in enumerate(messages):
        has_image = _check_message(f"messages[{i}]", message) or has_image
    return has_image


def _is_result(message: Mapping[str, Any]) -> bool:
    return bool(message["role"] == "tool")


def _check_message(where: str, message: object) -> bool:
    fields = typed(message, dict, where)
    typed(fields.get("role"), str, f"{where}.role")
    content = fields.get("content")
    if content is None or isinstance(content, str):
        return False
    if not isinstance(content, list):
        wrong_type(f"{where}.content", "a string, an array of parts or null", content)
    for i, part in enumerate(content):
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            wrong_type(f"{where}.content[{i}]", "an object with a `type`", part)
    return any(part["type"] in _IMAGE_PARTS for part in content)


CHAT_COMPLETIONS = ChatCompletions()
COMPLETIONS = Completions()
