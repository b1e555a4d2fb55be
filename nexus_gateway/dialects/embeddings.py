"""OpenAI's embeddings: `POST /v1/embeddings`."""

from __future__ import annotations

import re
import sys
from array import array
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from nexus_gateway.dialects.base import Dialect, FullResponse, InvalidAnswer, Request
from nexus_gateway.dialects.body import Body, optional, parse_object, text_or_list, validated
from nexus_gateway.dialects.chat import parse_answer, usage_in
from nexus_gateway.errors import InvalidRequest
from nexus_gateway.provider import ANY_MODEL
from nexus_gateway.wire import json_codec

# A larger answer is not parsed: tens of megabytes of numbers would delay all other requests.
_PARSED_UP_TO = 1024 * 1024
# Vectors as numbers, and as the base64 of their little-endian float32s.
_NUMBERS = re.compile(rb'("embedding"\s*:\s*)(\[[^\[\]]*+\])')
_BASE64 = re.compile(rb'("embedding"\s*:\s*)("[A-Za-z0-9+/=]*+")')
_USAGE = re.compile(rb'"usage"\s*:\s*(\{[^{}]*\})')
_TAIL = 4096
_SLICE = 64 * 1024  # whole float32s in base64


class Embeddings(Dialect):
    """Passed to backends that offer it, for the model that the request names.

    A backend may ignore `encoding_format` or not know base64, which the official clients request:
    the vectors of its answer are brought into the form that was asked for.
    """

    endpoint = "embeddings"
    asks_base64 = False
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
        dialect = _IN_BASE64 if fields.get("encoding_format") == "base64" else EMBEDDINGS
        return Request(dialect, model, False, validated(Body(fields, size=len(data)), model))

    def parse_native(self, body: bytes, content_type: str, label: str | None) -> FullResponse:
        """Check a list of vectors; `model` is kept, since vectors compare only within a model."""
        body = _in_base64(body) if self.asks_base64 else _in_numbers(body)
        if len(body) > _PARSED_UP_TO:
            return FullResponse(body, _check_large(body))
        answer = parse_answer(body, "data")
        if not isinstance(answer.get("data"), list):
            raise InvalidAnswer("answered 200 without an answer")
        return FullResponse(body, usage_in(answer))


class _InBase64(Embeddings):
    asks_base64 = True

    def easier(self, request: Request, error: Mapping[str, Any]) -> Request | None:
        named = f"{error.get('param')} {error.get('message')}"
        if "encoding_format" not in named and "base64" not in named:
            return None
        assert isinstance(request.native, Body)
        fields = {k: v for k, v in request.native.fields.items() if k != "encoding_format"}
        return replace(request, native=Body(fields, size=request.native.size))


def _in_base64(body: bytes) -> bytes:
    def encoded(start: int, end: int) -> Iterator[bytes]:
        vector, at = array("f"), start + 1
        while at < end:
            cut = body.rindex(b",", at, at + _SLICE) if end - at > _SLICE else end - 1
            vector.extend(json_codec.loads(b"[%b]" % body[at:cut]))
            at = cut + 1
        yield b'"%b"' % b64encode(_little_endian(vector).tobytes())

    return _converted(_NUMBERS, encoded, body)


def _in_numbers(body: bytes) -> bytes:
    def decoded(start: int, end: int) -> Iterator[bytes]:
        mark = b"["
        for at in range(start + 1, end - 1, _SLICE):
            vector = array("f")
            vector.frombytes(b64decode(body[at : min(at + _SLICE, end - 1)]))
            yield mark + json_codec.dumps(_little_endian(vector).tolist())[1:-1]
            mark = b","
        yield b"]" if mark == b"," else b"[]"

    return _converted(_BASE64, decoded, body)


def _converted(
    pattern: re.Pattern[bytes], convert: Callable[[int, int], Iterator[bytes]], body: bytes
) -> bytes:
    """Convert the vectors slice by slice, so that a thread lets others run in between."""
    pieces: list[bytes | memoryview] = []
    at, left = 0, Embeddings.longest_answer
    try:
        for match in pattern.finditer(body):
            start, end = match.span(2)
            pieces.append(memoryview(body)[at:start])
            for piece in convert(start, end):
                pieces.append(piece)
                left -= len(piece)
                if left < 0:
                    raise InvalidAnswer("answered with too many vectors to write as numbers")
            at = end
    except (ArithmeticError, TypeError, ValueError):
        raise InvalidAnswer("answered with vectors that cannot be read") from None
    return b"".join((*pieces, memoryview(body)[at:])) if pieces else body


def _little_endian(vector: array[float]) -> array[float]:
    if sys.byteorder == "big":
        vector.byteswap()
    return vector


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
_IN_BASE64 = _InBase64()
