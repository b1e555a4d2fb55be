"""OpenAI's embeddings: `POST /v1/embeddings`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from nexus_gateway.dialects.base import Dialect, FullResponse, InvalidAnswer, Request
from nexus_gateway.dialects.body import Body, optional, parse_object, text_or_list, validated
from nexus_gateway.dialects.chat import parse_answer, usage_in
from nexus_gateway.errors import InvalidRequest
from nexus_gateway.provider import ANY_MODEL
from nexus_gateway.wire import json_codec

# A larger answer is not parsed: tens of megabytes of numbers would delay all other requests.
_PARSED_UP_TO = 1024 * 1024
_USAGE = re.compile(rb'"usage"\s*:\s*(\{[^{}]*\})')
_TAIL = 4096


class Embeddings(Dialect):
    """Passed to backends that offer it, for the model that the request names."""

    endpoint = "embeddings"
    kind = "embeddings"
    longest_answer = 128 * 1024 * 1024

    def parse(self, data: bytes, headers: Mapping[str, str]) -> Request:
        fields = parse_object(data)
        model = optional(fields, "model", str)
        if model is None or model in ANY_MODEL:
            raise InvalidRequest(
                "`model` must name an embedding model: vectors of different models cannot be "
                "compared, so the gateway does not choose one.",
                param="model",
            )
        text_or_list(fields, "input")
        return Request(self, model, False, validated(Body(fields), model))

    def parse_native(self, body: bytes, content_type: str, label: str | None) -> FullResponse:
        """Check a list of vectors; `model` is kept, since vectors compare only within a model."""
        if len(body) > _PARSED_UP_TO:
            return FullResponse(body, _check_large(body))
        answer = parse_answer(body, "data")
        if not isinstance(answer.get("data"), list):
            raise InvalidAnswer("answered 200 without an answer")
        return FullResponse(body, usage_in(answer))


def _check_large(body: bytes) -> Mapping[str, Any]:
    """Check the beginning and the end of a large list of vectors; return its usage."""
    if not (body.lstrip().startswith(b"{") and body.rstrip().endswith(b"}") and b'"data"' in body):
        raise InvalidAnswer("answered 200 without an answer")
    match = _USAGE.search(body, len(body) - _TAIL) or _USAGE.search(body[:_TAIL])
    try:
        return usage_in(json_codec.loads(b"{%b}" % match[0])) if match else {}
    except json_codec.JSONError:
        return {}


EMBEDDINGS = Embeddings()
