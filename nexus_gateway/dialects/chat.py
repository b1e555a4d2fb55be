"""OpenAI's chat completions: the inner form, and the dialect of `POST /v1/chat/completions`.

OpenAI's older completions, of a `prompt`: the dialect of `POST /v1/completions`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nexus_gateway.dialects.base import Dialect, FullResponse, InvalidAnswer, Request
from nexus_gateway.dialects.body import Body, optional, parse_object, validated, wrong_type
from nexus_gateway.errors import InvalidRequest
from nexus_gateway.provider import CHAT
from nexus_gateway.wire import json_codec, sse
from nexus_gateway.wire.chat_passthrough import ChatPassthrough, find_model, set_model
from nexus_gateway.wire.chunks import Chunk, choices, is_usage_only

_IMAGE_PARTS = frozenset({"image_url", "input_image", "image"})


class ChatSpeaker:
    """Tells chunks as they are.

    Args:
        usage_wanted: whether the caller asked for the usage chunk.
    """

    def __init__(self, usage_wanted: bool) -> None:
        self._usage_wanted = usage_wanted

    def encode(self, chunk: Chunk) -> bytes:
        """Return a chunk's event; none for usage that nobody asked for."""
        if is_usage_only(chunk) and not self._usage_wanted:
            return b""
        return sse.json_event(chunk)

    def finish(self) -> bytes:
        """Return `[DONE]`."""
        return sse.DONE


class ChatCompletions(Dialect):
    """The inner form itself: nothing is translated."""

    endpoint = CHAT
    has_stream_options = True

    def parse(self, data: bytes, headers: Mapping[str, str]) -> Request:
        """Check what the gateway itself reads; every other field passes."""
        fields = parse_object(data)
        model = optional(fields, "model", str, "a string")
        stream = optional(fields, "stream", bool, "true or false")
        optional(fields, "stream_options", dict, "an object")
        images = check_messages(fields.get("messages"))
        streamed = stream if stream is not None else model is None
        body = validated(Body(fields, streamed), model)
        return Request(self, model, streamed, body, body, images)

    def parse_native(
        self, request: Request, body: bytes, content_type: str, label: str | None
    ) -> FullResponse:
        """Check a chat completion and set its `model`."""
        return completion(body, label)

    def event_filter(self, request: Request, label: str | None) -> ChatPassthrough:
        """Return the way through for a stream of chunks."""
        return ChatPassthrough(label, usage_wanted(request))

    def encode_full(self, request: Request, completion: Chunk) -> Chunk:
        """Return the completion."""
        return completion

    def stream_encoder(self, request: Request) -> ChatSpeaker:
        """Return what tells the chunks as they are."""
        return ChatSpeaker(usage_wanted(request))


def usage_wanted(request: Request) -> bool:
    """Tell whether the caller asked for the usage chunk."""
    return request.chat is not None and request.chat.asks_usage


def completion(body: bytes, label: str | None) -> FullResponse:
    """Check a completion, of a chat or of a prompt, and set its `model`.

    Raises:
        NotAnAnswer: it is none.
    """
    return FullResponse(labelled(body, label), usage_in(completed(body)))


def completed(body: bytes) -> Chunk:
    """Parse a completion.

    Raises:
        NotAnAnswer: it is none.
    """
    answer = answered(body)
    if not choices(answer):
        raise InvalidAnswer("answered 200 without an answer")
    return answer


def answered(body: bytes) -> dict[str, Any]:
    """Parse the body of a 200.

    Raises:
        NotAnAnswer: it is no JSON object, or an error.
    """
    try:
        answer = json_codec.loads(body)
    except json_codec.JSONError:
        raise InvalidAnswer("answered with something that is not JSON") from None
    if not isinstance(answer, dict):
        raise InvalidAnswer("answered 200 without an answer")
    if answer.get("error"):
        raise InvalidAnswer("answered 200 with an error")
    return answer


def usage_in(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an answer's usage, empty where it has none."""
    usage = answer.get("usage")
    return usage if isinstance(usage, dict) else {}


def labelled(body: bytes, label: str | None) -> bytes:
    """Return a JSON object's bytes with the instance's name as its `model`.

    Servers write `model` before the choices, which may be long.
    """
    if label is None:
        return body
    name, choices_at = json_codec.dumps(label), body.find(b'"choices"')
    span = find_model(body[:choices_at]) if choices_at > 0 else None
    return body[: span[0]] + name + body[span[1] :] if span else set_model(body, name)


def check_messages(messages: object) -> bool:
    """Check a chat's messages; tell whether one holds an image.

    Raises:
        InvalidRequest: they are no messages.
    """
    if messages is None:
        raise InvalidRequest("The field `messages` is missing.", param="messages")
    if not isinstance(messages, list):
        wrong_type("messages", "an array", messages)
    if not messages:
        raise InvalidRequest("`messages` must not be empty.", param="messages")
    return any([_check_message(f"messages[{i}]", message) for i, message in enumerate(messages)])


def _check_message(where: str, message: object) -> bool:
    if not isinstance(message, dict):
        wrong_type(where, "an object", message)
    if not isinstance(message.get("role"), str):
        wrong_type(f"{where}.role", "a string", message.get("role"))
    content = message.get("content")
    if content is None or isinstance(content, str):
        return False
    if not isinstance(content, list):
        wrong_type(f"{where}.content", "a string, an array of parts or null", content)
    for i, part in enumerate(content):
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            wrong_type(f"{where}.content[{i}]", "an object with a `type`", part)
    return any(part["type"] in _IMAGE_PARTS for part in content)


CHAT_COMPLETIONS = ChatCompletions()


class Completions(Dialect):
    """Completions go as they are, to backends that have them."""

    endpoint = "completions"
    kind = "completions"
    has_stream_options = True

    def parse(self, data: bytes, headers: Mapping[str, str]) -> Request:
        """Check what the gateway itself reads; every other field passes."""
        fields = parse_object(data)
        model = optional(fields, "model", str, "a string")
        stream = optional(fields, "stream", bool, "true or false") or False
        optional(fields, "stream_options", dict, "an object")
        prompt = fields.get("prompt")
        if prompt is None:
            raise InvalidRequest("The field `prompt` is missing.", param="prompt")
        if not isinstance(prompt, (str, list)):
            wrong_type("prompt", "a string or an array", prompt)
        return Request(self, model, stream, validated(Body(fields, stream), model))

    def parse_native(
        self, request: Request, body: bytes, content_type: str, label: str | None
    ) -> FullResponse:
        """Check a completion and set its `model`."""
        return completion(body, label)

    def event_filter(self, request: Request, label: str | None) -> ChatPassthrough:
        """Return the way through for a stream of chunks, as a chat's: only the texts differ."""
        return ChatPassthrough(
            label, isinstance(request.native, Body) and request.native.asks_usage
        )


COMPLETIONS = Completions()
