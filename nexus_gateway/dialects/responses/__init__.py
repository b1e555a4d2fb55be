"""OpenAI's Responses: `POST /v1/responses`.

- `request`: a Responses request as a chat
- `response`: a chat's answer as a response
- `references`: what a request refers to by its id, and what is kept for later ones
- `tools`: the tools of a request as a chat's functions, and their calls back
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from nexus_gateway.dialects.base import (
    Dialect,
    FullResponse,
    InvalidAnswer,
    Request,
    StreamEncoder,
)
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
from nexus_gateway.dialects.responses.tools import Tool
from nexus_gateway.errors import ErrorEvent
from nexus_gateway.wire import json_codec, sse
from nexus_gateway.wire.carried import is_loaded
from nexus_gateway.wire.chunks import Chunk
from nexus_gateway.wire.error_objects import normalise_error
from nexus_gateway.wire.passthrough import EventKind, EventPassthrough, Passthrough

_ENDS = frozenset({"response.completed", "response.incomplete"})
NOT_KEPT: Mapping[str, Any] = MappingProxyType({"store": False})
_FAILURES = frozenset({"response.failed", "error"})


@dataclass
class ResponsesRequest(Request):
    """A parsed request, and its tools by their names in its chat."""

    tools: Mapping[str, Tool] = field(default_factory=dict, repr=False)


@dataclass(eq=False, repr=False)
class ResponsePassthrough(EventPassthrough):
    markers = (b'"response.completed"', b'"response.incomplete"', b'"response.failed"', b'"error"')
    _begun: dict[str, Any] | None = None  # the response as it began
    _latest: bytes = b""  # the last events that were sent

    def progress(self) -> tuple[int, Mapping[str, Any] | None]:
        """Return the next event's number, and the response as it began, None if it has not."""
        for event in reversed([*sse.split(self._latest)]):
            try:
                number = json_codec.loads(sse.parse_event(event).data)["sequence_number"]
                return int(number) + 1, self._begun
            except (ValueError, TypeError, KeyError):
                continue  # a comment, or an event of a backend that does not number them
        return 0, self._begun

    def _slow_path(self, block: bytes, at: int = 0) -> bytes:
        passed = super()._slow_path(block, at)
        self._latest = passed or self._latest
        return passed

    def _classify(self, event: dict[str, Any]) -> EventKind:
        kind = event.get("type")
        if kind in _FAILURES or event.get("error"):
            raise ErrorEvent(normalise_error(_error_in(event)))
        if kind in _ENDS:
            self.usage = to_chat_usage(_object_in(event, "response").get("usage")) or None
            return EventKind.END
        if kind == "response.created":
            self._begun = dict(_object_in(event, "response")) or None
        calls = str(_object_in(event, "item").get("type")).endswith("_call")
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
        return self.read_fields(parse_object(data), len(data))

    def read_fields(
        self,
        fields: dict[str, Any],
        size: int,
        own: Fields = NOT_KEPT,
        native_input: Items | None = None,
    ) -> Request:
        """Check a request that is parsed, as `parse`.

        Args:
            fields: the request's, without `own`.
            size: about how many bytes it has.
            own: the fields that the gateway serves itself.
            native_input: its input for a backend of this dialect, if that is not the same.
        """
        model, stream = fields.get("model"), fields.get("stream") is True
        sent = fields if native_input is None else {**fields, "input": native_input}
        native = validated(Body(sent, stream, size), model)
        translated = translate(fields, stream=stream)
        unloaded = _unloaded_input(sent)
        if unloaded is not sent:
            native = validated(Body(unloaded, stream, size), model)
        chat = None
        if translated.chat is not None:
            chat = validated(Body(translated.chat, stream, size), model)
        return ResponsesRequest(
            self,
            model,
            stream,
            native,
            chat,
            translated.images,
            translated.error,
            own=own,
            images_may_go=translated.images_may_go,
            tools=translated.tools,
        )

    def parse_native(self, body: bytes, content_type: str, label: str | None) -> FullResponse:
        answer = parse_answer(body, "output")
        if answer.get("object") != "response" or answer.get("status") == "failed":
            raise InvalidAnswer("answered 200 without a response")
        return FullResponse(labelled(body, answer, label), to_chat_usage(answer.get("usage")))

    def passthrough(self, request: Request, label: str | None) -> ResponsePassthrough:
        return ResponsePassthrough()

    def encode_full(self, request: Request, completion: Chunk) -> Chunk:
        fields, tools = _asked(request)
        return to_response(fields, completion, tools)

    def stream_encoder(self, request: Request) -> ResponseEncoder:
        return ResponseEncoder(*_asked(request))

    def error_event(
        self, status: int, body: dict[str, Any], sent: Passthrough | StreamEncoder | None = None
    ) -> bytes:
        """Return `response.failed`, if the response has begun, and an `error` event.

        The latter has OpenAI's flat fields, and the object that its clients read.
        """
        error, number, begun = body["error"], 0, None
        if isinstance(sent, ResponseEncoder | ResponsePassthrough):
            number, begun = sent.progress()
        events = b""
        if begun is not None:
            events = sse.json_event(_failed(number, begun, error), "response.failed")
            number += 1
        flat = {name: error.get(name) for name in ("code", "message", "param")}
        last = {"type": "error", "sequence_number": number, **flat, "error": error}
        return events + sse.json_event(last, "error")


def _failed(number: int, begun: Mapping[str, Any], error: Mapping[str, Any]) -> dict[str, Any]:
    code = error.get("code")
    is_known = isinstance(code, str) and error.get("type") != "server_error"
    shown = {"code": code if is_known else "server_error", "message": error.get("message")}
    response = {**begun, "status": "failed", "error": shown}
    return {"type": "response.failed", "sequence_number": number, "response": response}


def _asked(request: Request) -> tuple[Mapping[str, Any], Mapping[str, Tool]]:
    assert isinstance(request, ResponsesRequest)
    assert isinstance(request.native, Body)
    return {**request.native.fields, **request.own}, request.tools


def _unloaded_input(fields: dict[str, Any]) -> dict[str, Any]:
    """Return a request without the reasoning that only this gateway can read.

    Reasoning that is neither encrypted nor stored is of another backend, too.
    """

    def is_ours(item: Mapping[str, Any]) -> bool:
        sealed, id = item.get("encrypted_content"), str(item.get("id") or OPEN_REASONING)
        is_open = not sealed and id.startswith(OPEN_REASONING)
        return item.get("type") == "reasoning" and (is_open or is_loaded(sealed))

    items = fields["input"]
    if isinstance(items, str):
        return fields
    plain = [item for item in items if not is_ours(item)]
    return fields if len(plain) == len(items) else {**fields, "input": plain}


RESPONSES = Responses()
