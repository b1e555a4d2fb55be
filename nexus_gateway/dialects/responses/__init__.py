"""OpenAI's Responses, the dialect of `POST /v1/responses`, for a gateway that keeps no state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nexus_gateway.dialects.base import Dialect, FullResponse, InvalidAnswer, Request
from nexus_gateway.dialects.body import Body, parse_object, validated
from nexus_gateway.dialects.chat import answered, labelled
from nexus_gateway.dialects.responses.request import translate
from nexus_gateway.dialects.responses.response import (
    OPEN_REASONING,
    ResponseEncoder,
    to_chat_usage,
    whole,
)
from nexus_gateway.errors import ErrorEvent
from nexus_gateway.wire import sse
from nexus_gateway.wire.chunks import Chunk
from nexus_gateway.wire.error_objects import normalise_error
from nexus_gateway.wire.passthrough import EventKind, EventPassthrough

_ENDS = frozenset({"response.completed", "response.incomplete"})
_FAILURES = frozenset({"response.failed", "error"})


class ResponsePassthrough(EventPassthrough):
    """The way through for the events of a response."""

    markers = (b'"response.completed"', b'"response.incomplete"', b'"response.failed"', b'"error"')

    def _classify(self, event: dict[str, Any]) -> EventKind:
        kind = event.get("type")
        if kind in _FAILURES or event.get("error"):
            raise ErrorEvent(normalise_error(_error_in(event)))
        if kind in _ENDS:
            self.usage = to_chat_usage(_part(event, "response").get("usage")) or None
            return EventKind.END
        calls = _part(event, "item").get("type") == "function_call"
        return EventKind.CONTENT if calls or str(kind).endswith(".delta") else EventKind.NOTHING


def _part(event: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = event.get(name)
    return value if isinstance(value, dict) else {}


def _error_in(event: Mapping[str, Any]) -> object:
    """Return the error that an event tells: whole, a response's, or in the event's own fields."""
    told = event.get("error") or _part(event, "response").get("error")
    return told or {name: event.get(name) for name in ("message", "code", "param")}


class Responses(Dialect):
    """Takes requests that carry their whole conversation, and answers without storing."""

    endpoint = "responses"

    def parse(self, data: bytes, headers: Mapping[str, str]) -> Request:
        """Check a body and put it into a chat; what a chat cannot say is its obstacle."""
        fields = parse_object(data)
        model, stream = fields.get("model"), fields.get("stream") is True
        said = translate(fields, stream=stream)
        sealed = fields if OPEN_REASONING.encode() not in data else _without_open_reasoning(fields)
        own = validated(Body(sealed, stream), model)
        chat = None if said.chat is None else validated(Body(said.chat, stream), model)
        return Request(self, model, stream, own, chat, said.images, said.obstacle)

    def parse_native(
        self, request: Request, body: bytes, content_type: str, label: str | None
    ) -> FullResponse:
        """Check a response and set its `model`."""
        answer = answered(body)
        if answer.get("object") != "response" or answer.get("status") == "failed":
            raise InvalidAnswer("answered 200 without a response")
        return FullResponse(labelled(body, label), to_chat_usage(answer.get("usage")))

    def event_filter(self, request: Request, label: str | None) -> ResponsePassthrough:
        """Return a watch for the events; they keep the upstream's word for the model."""
        return ResponsePassthrough()

    def encode_full(self, request: Request, completion: Chunk) -> Chunk:
        """Return a completion as a response."""
        return whole(_asked(request), completion)

    def stream_encoder(self, request: Request) -> ResponseEncoder:
        """Return what tells chunks as the events of a response."""
        return ResponseEncoder(_asked(request))

    def error_event(self, status: int, body: dict[str, Any]) -> bytes:
        """Return an `error` event: OpenAI's flat fields, and the object its clients look for."""
        error = body["error"]
        flat = {name: error.get(name) for name in ("code", "message", "param")}
        return sse.json_event({"type": "error", **flat, "error": error}, "error")


def _asked(request: Request) -> Mapping[str, Any]:
    """Return the fields of a request as the caller sent them."""
    assert isinstance(request.native, Body)
    return request.native.fields


def _without_open_reasoning(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out reasoning of ours: a backend of this dialect knows only what it has made itself."""

    def ours(item: Mapping[str, Any]) -> bool:
        return item.get("type") == "reasoning" and str(item.get("id")).startswith(OPEN_REASONING)

    asked = fields["input"]
    kept = asked if isinstance(asked, str) else [item for item in asked if not ours(item)]
    return {**fields, "input": kept}


RESPONSES = Responses()
