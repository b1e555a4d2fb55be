"""OpenAI's Responses: `POST /v1/responses`.

- `request`: a Responses request as a chat
- `response`: a chat's answer as a response
- `references`: what a request refers to by its id, and what is kept for later ones
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from nexus_gateway.dialects.base import Dialect, FullResponse, InvalidAnswer, Request
from nexus_gateway.dialects.body import Body, parse_object, validated
from nexus_gateway.dialects.chat import labelled, parse_answer
from nexus_gateway.dialects.responses.references import Items
from nexus_gateway.dialects.responses.request import Fields, translate
from nexus_gateway.dialects.responses.response import (
    OPEN_REASONING,
    ResponseEncoder,
    to_chat_usage,
    to_response,
)
from nexus_gateway.errors import ErrorEvent
from nexus_gateway.wire import sse
from nexus_gateway.wire.carried import unload_id, unload_reasoning
from nexus_gateway.wire.chunks import Chunk
from nexus_gateway.wire.error_objects import normalise_error
from nexus_gateway.wire.passthrough import EventKind, EventPassthrough

_ENDS = frozenset({"response.completed", "response.incomplete"})
NOT_KEPT: Mapping[str, Any] = MappingProxyType({"store": False})
_FAILURES = frozenset({"response.failed", "error"})


class ResponsePassthrough(EventPassthrough):
    markers = (b'"response.completed"', b'"response.incomplete"', b'"response.failed"', b'"error"')

    def _classify(self, event: dict[str, Any]) -> EventKind:
        kind = event.get("type")
        if kind in _FAILURES or event.get("error"):
            raise ErrorEvent(normalise_error(_error_in(event)))
        if kind in _ENDS:
            self.usage = to_chat_usage(_object_in(event, "response").get("usage")) or None
            return EventKind.END
        calls = _object_in(event, "item").get("type") == "function_call"
        return EventKind.CONTENT if calls or str(kind).endswith(".delta") else EventKind.NOTHING


def _object_in(event: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = event.get(name)
    return value if isinstance(value, dict) else {}


def _error_in(event: Mapping[str, Any]) -> object:
    """Return an event's error: its own, its response's, or the one in the event's own fields."""
    error = event.get("error") or _object_in(event, "response").get("error")
    return error or {name: event.get(name) for name in ("message", "code", "param")}


class Responses(Dialect):
    """Serves requests that contain their whole conversation."""

    endpoint = "responses"

    def parse(self, data: bytes, headers: Mapping[str, str]) -> Request:
        """Check a request, and translate it into a chat if possible."""
        return self.read_fields(parse_object(data))

    def read_fields(
        self, fields: dict[str, Any], own: Fields = NOT_KEPT, native_input: Items | None = None
    ) -> Request:
        """Check a request that is parsed, as `parse`.

        Args:
            fields: the request's, without `own`.
            own: the fields that the gateway serves itself.
            native_input: its input for a backend of this dialect, if that is not the same.
        """
        model, stream = fields.get("model"), fields.get("stream") is True
        translated, images, error = translate(fields, stream=stream)
        if native_input is not None:
            fields = {**fields, "input": native_input}
        native = validated(Body(_unloaded_input(fields), stream), model)
        chat = None if translated is None else validated(Body(translated, stream), model)
        return Request(self, model, stream, native, chat, images, error, own=own)

    def parse_native(self, body: bytes, content_type: str, label: str | None) -> FullResponse:
        answer = parse_answer(body, "output")
        if answer.get("object") != "response" or answer.get("status") == "failed":
            raise InvalidAnswer("answered 200 without a response")
        return FullResponse(labelled(body, label), to_chat_usage(answer.get("usage")))

    def passthrough(self, request: Request, label: str | None) -> ResponsePassthrough:
        return ResponsePassthrough()

    def encode_full(self, request: Request, completion: Chunk) -> Chunk:
        return to_response(_fields(request), completion)

    def stream_encoder(self, request: Request) -> ResponseEncoder:
        return ResponseEncoder(_fields(request))

    def error_event(self, status: int, body: dict[str, Any]) -> bytes:
        """Return an `error` event: OpenAI's flat fields, and the object that its clients read."""
        error = body["error"]
        flat = {name: error.get(name) for name in ("code", "message", "param")}
        return sse.json_event({"type": "error", **flat, "error": error}, "error")


def _fields(request: Request) -> Mapping[str, Any]:
    assert isinstance(request.native, Body)
    return {**request.native.fields, **request.own}


def _unloaded_input(fields: dict[str, Any]) -> dict[str, Any]:
    """Return a request without the reasoning and the ids that only this gateway can read."""

    def is_ours(item: Mapping[str, Any]) -> bool:
        loaded = unload_reasoning(item.get("encrypted_content")) is not None
        known = loaded or str(item.get("id")).startswith(OPEN_REASONING)
        return item.get("type") == "reasoning" and known

    items = fields["input"]
    if isinstance(items, str):
        return fields
    return {**fields, "input": [_unloaded_item(item) for item in items if not is_ours(item)]}


def _unloaded_item(item: Mapping[str, Any]) -> Mapping[str, Any]:
    id = item.get("call_id")
    return {**item, "call_id": unload_id(id)[0]} if isinstance(id, str) else item


RESPONSES = Responses()
