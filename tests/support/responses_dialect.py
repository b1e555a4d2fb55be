"""Requests and answers of the Responses dialect, without a server."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from typing import Any

from official import openai
from pydantic import TypeAdapter

from nexus_gateway.dialects.base import Request
from nexus_gateway.dialects.responses import RESPONSES
from nexus_gateway.wire import sse
from nexus_gateway.wire.chunks import Chunk, fold


def parse(body: dict[str, Any]) -> Request:
    return RESPONSES.parse(json.dumps(body).encode(), {})


def chat_of(**fields: Any) -> dict[str, Any]:
    request = parse({"input": "Hi", **fields})
    assert request.untranslatable is None
    assert request.chat is not None
    return dict(request.chat.fields)


def messages_of(*items: Any) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = chat_of(input=list(items))["messages"]
    return messages


def stream_of(chunks: Iterable[Chunk], **fields: Any) -> bytes:
    encoder = RESPONSES.stream_encoder(parse({"input": "Hi", "stream": True, **fields}))
    return b"".join([*map(encoder.encode, chunks), encoder.finish()])


def events_of(chunks: Iterable[Chunk], **fields: Any) -> list[dict[str, Any]]:
    parsed = [sse.parse_event(event) for event in sse.split(stream_of(chunks, **fields))]
    events = [json.loads(event.data) for event in parsed]
    assert [event.name for event in parsed] == [event["type"] for event in events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def short(event: dict[str, Any]) -> str:
    indexes = ("output_index", "content_index", "summary_index")
    place = "".join(f" {event[k]}" for k in indexes if k in event)
    values = [event[k] for k in ("delta", "text", "refusal", "arguments", "input") if k in event]
    return event["type"].removeprefix("response.") + place + "".join(f" {text}" for text in values)


def summaries(*chunks: Chunk) -> list[str]:
    return [short(event) for event in events_of(chunks)]


def response_of(*chunks: Chunk, **fields: Any) -> dict[str, Any]:
    response: dict[str, Any] = events_of(chunks, **fields)[-1]["response"]
    return response


def full_response_of(*chunks: Chunk, **fields: Any) -> dict[str, Any]:
    return RESPONSES.encode_full(parse({"input": "Hi", **fields}), fold(chunks))


@cache
def official_event() -> TypeAdapter[Any]:
    return TypeAdapter(openai.types.responses.ResponseStreamEvent)
