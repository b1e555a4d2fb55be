"""OpenAI's embeddings: the dialect of `POST /v1/embeddings`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from nexus_gateway.dialects.base import Dialect, FullResponse, InvalidAnswer, Request
from nexus_gateway.dialects.body import Body, optional, parse_object, validated, wrong_type
from nexus_gateway.dialects.chat import answered, usage_in
from nexus_gateway.errors import InvalidRequest
from nexus_gateway.provider import ANY_MODEL
from nexus_gateway.wire import json_codec

# A larger answer is looked at, not parsed: tens of megabytes of numbers would hold everybody up.
_PARSED_UP_TO = 1024 * 1024
_USAGE = re.compile(rb'"usage"\s*:\s*(\{[^{}]*\})')
_TAIL = 4096


class Embeddings(Dialect):
    """Embeddings go as they are, to backends that have them, for the model that is named."""

    endpoint = "embeddings"
    kind = "embeddings"
    longest_answer = 128 * 1024 * 1024

    def parse(self, data: bytes, headers: Mapping[str, str]) -> Request:
        """Check what the gateway itself reads; every other field passes."""
        fields = parse_object(data)
        model = optional(fields, "model", str, "a string")
        if model is None or model in ANY_MODEL:
            raise InvalidRequest(
                "`model` must name an embedding model: vectors of two models do not compare, so "
                "the gateway does not choose one.",
                param="model",
            )
        given = fields.get("input")
        if given is None:
            raise InvalidRequest("The field `input` is missing.", param="input")
        if not isinstance(given, (str, list)):
            wrong_type("input", "a string or an array", given)
        return Request(self, model, False, validated(Body(fields), model))

    def parse_native(
        self, request: Request, body: bytes, content_type: str, label: str | None
    ) -> FullResponse:
        """Check a list of vectors; its `model` stays: it tells what the vectors compare with."""
        if len(body) > _PARSED_UP_TO:
            return FullResponse(body, _large(body))
        answer = answered(body)
        if not isinstance(answer.get("data"), list):
            raise InvalidAnswer("answered 200 without an answer")
        return FullResponse(body, usage_in(answer))


def _large(body: bytes) -> Mapping[str, Any]:
    """Check a large list of vectors by its ends; return its usage."""
    if not (body.lstrip().startswith(b"{") and body.rstrip().endswith(b"}") and b'"data"' in body):
        raise InvalidAnswer("answered 200 without an answer")
    found = _USAGE.search(body, len(body) - _TAIL) or _USAGE.search(body[:_TAIL])
    try:
        usage = json_codec.loads(found[1]) if found else {}
    except json_codec.JSONError:
        usage = {}
    return usage if isinstance(usage, dict) else {}


EMBEDDINGS = Embeddings()
