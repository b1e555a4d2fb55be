"""A caller's JSON body: parsed once, checked field by field, encoded once for all attempts.

The fields that differ between attempts (`model`, `stream`, `stream_options`) are written in front
of the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

from nexus_gateway.errors import InvalidRequest
from nexus_gateway.wire import json_codec
from nexus_gateway.wire.adaptations import cap_output

T = TypeVar("T")

MAX_DEPTH = 200
MAX_CONTAINERS = 50_000
# Counted before the body is parsed. Texts contain brackets too, so this is only a rough check.
MAX_BRACKETS = 500_000
# The parser lets no other thread run within one object, so its names must not be too many.
MAX_STRINGS = 100_000
MAX_VALUES = 500_000
_BYTES_PER_STRING = 3  # at least: its quotes and a comma
_BYTES_PER_VALUE = 2
_COUNTED = 64 * 1024  # at a time
_CONTAINERS = (dict, list)
# Fields by which a body has chosen other gateways' upstream or key; they are never sent on.
UNTRUSTED = frozenset({"api_base", "base_url", "api_key"})
_OPTIONS = "stream_options"
_NOT_IN_REST = UNTRUSTED | {"model", "stream", _OPTIONS}
_USAGE = b',"stream_options":{"include_usage":true}'
_TYPE_NAMES: dict[type, str] = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    type(None): "null",
}
_EXPECTED = _TYPE_NAMES | {bool: "true or false", int: "a whole number"}


class Body:
    """A JSON object for upstreams; `stream` is None if it has no such field.

    Attributes:
        asks_usage: whether it requests the usage of a stream.
        size: about how many bytes it has if these may be many, else 0.
    """

    content_type = "application/json"
    replayable = True

    def __init__(
        self, fields: Mapping[str, Any], stream: bool | None = None, size: int = 0
    ) -> None:
        self.fields = fields
        self.size = size
        self._stream = stream
        options = fields.get(_OPTIONS)
        self.has_own_stream_options = _OPTIONS in fields
        self.asks_usage = isinstance(options, dict) and options.get("include_usage") is True
        self._rest = dict(fields)
        for name in _NOT_IN_REST:
            self._rest.pop(name, None)
        self._encoded_rest: bytes | None = None

    def _options(self, *, usage: bool) -> dict[str, Any]:
        """Return `stream_options` alone, with the request for usage added if `usage`."""
        options = self.fields.get(_OPTIONS)
        if usage:
            options = {**(options if isinstance(options, dict) else {}), "include_usage": True}
            return {_OPTIONS: options}
        return {_OPTIONS: options} if _OPTIONS in self.fields else {}

    def limited(self, tokens: int) -> Body:
        """Return a body that asks for an answer of no more tokens; itself if it does already."""
        fields = cap_output(self.fields, tokens)
        return self if fields is self.fields else Body(fields, self._stream, self.size)

    def with_model(self, model: str, *, stream: bool, usage: bool = False) -> dict[str, Any]:
        """Return the fields for a provider; `usage` as in `encode`."""
        return {"model": model, "stream": stream, **self._options(usage=usage), **self._rest}

    def encode(self, model: str, *, usage: bool = False) -> bytes:
        """Return the bytes to send; JSONError if it has no JSON form.

        `usage` requests the usage of a stream, in addition to the caller's `stream_options`.
        """
        head = b'{"model":' + json_codec.dumps(model)
        if self._stream is not None:
            head += b',"stream":true' if self._stream else b',"stream":false'
        if self.has_own_stream_options:
            head += b"," + json_codec.dumps(self._options(usage=usage))[1:-1]
        elif usage:
            head += _USAGE
        if self._encoded_rest is None:
            self._encoded_rest = b"}"
            if self._rest:
                encoded = json_codec.dumps(self._rest, self.size)
                self._encoded_rest = b"".join((b",", memoryview(encoded)[1:]))
                del encoded  # while it is copied once more
        return head + self._encoded_rest


def parse_object(data: bytes) -> dict[str, Any]:
    """Parse a body that must be a JSON object; InvalidRequest names what is wrong."""
    size, brackets = len(data), _count(data, b"{") + _count(data, b"[")
    if brackets > MAX_BRACKETS:
        raise InvalidRequest("The body has too many objects and arrays.")
    if size > MAX_STRINGS * _BYTES_PER_STRING and _count_quotes(data) > 2 * MAX_STRINGS:
        raise InvalidRequest(f"The body has more than {MAX_STRINGS} names and texts.")
    try:
        body = json_codec.loads_exact(data, MAX_VALUES)
    except json_codec.TooManyNumbers:
        raise InvalidRequest(f"The body has more than {MAX_VALUES} numbers.") from None
    except json_codec.JSONError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from error
    if not isinstance(body, dict):
        raise InvalidRequest(f"The body must be a JSON object, not {json_type(body)}.")
    if brackets > MAX_DEPTH or size > MAX_VALUES * _BYTES_PER_VALUE:
        _check_shape(body)
    return body


def _count_quotes(data: bytes) -> int:
    """Return how many quotes are in JSON, without those in texts.

    No backslash precedes the first one of a text, so at least these are counted.
    """
    return _count(data, b'"') - _count(data, b'\\"')


def _count(data: bytes, what: bytes) -> int:
    """Return about how often something is in data; other threads run in between."""
    return sum(data.count(what, at, at + _COUNTED) for at in range(0, len(data), _COUNTED))


def _check_shape(body: dict[str, Any]) -> None:
    """Refuse a body that is nested too deeply or has too many values.

    A body that passes can be walked and encoded again anywhere, in bounded time and stack.
    """
    level: list[Any] = [body]
    count = depth = values = 0
    while level:
        depth += 1
        values += sum(map(len, level))
        if values > MAX_VALUES:
            raise InvalidRequest(f"The body has more than {MAX_VALUES} values.")
        children = (node.values() if type(node) is dict else node for node in level)
        below = [child for group in children for child in group if type(child) in _CONTAINERS]
        count += len(below)
        if depth > MAX_DEPTH or count > MAX_CONTAINERS:
            raise InvalidRequest(
                f"The body is nested more than {MAX_DEPTH} levels deep, or has more than "
                f"{MAX_CONTAINERS} objects and arrays."
            )
        level = below


def validated(body: Body, model: str | None) -> Body:
    """Return a body; InvalidRequest, before any attempt, if it cannot be encoded."""
    try:
        body.encode(model or "")
    except json_codec.JSONError as error:
        raise InvalidRequest(f"The body cannot be sent on: {error}.") from error
    return body


def typed(value: object, kind: type[T], where: str) -> T:
    """Return a caller's value if it has a type, else InvalidRequest; `float` is any number."""
    kinds = (int, float) if kind is float else kind
    if not isinstance(value, kinds) or (kind is not bool and isinstance(value, bool)):
        wrong_type(where, _EXPECTED[kind], value)
    return value  # type: ignore[return-value]


def optional(fields: Mapping[str, Any], name: str, kind: type[T], at: str = "") -> T | None:
    """Return a field's value, None if absent; `at` is where the fields are, such as `tools[0].`."""
    value = fields.get(name)
    return None if value is None else typed(value, kind, at + name)


def required(fields: Mapping[str, Any], name: str, kind: type[T], at: str = "") -> T:
    """Return a field's value, as `optional`; InvalidRequest if it is absent."""
    value = optional(fields, name, kind, at)
    if value is None:
        missing(at + name)
    return value


def text_or_list(fields: Mapping[str, Any], name: str, of: str = "") -> str | list[Any]:
    """Return a required field that is a string or an array, `of` what."""
    value = fields.get(name)
    if value is None:
        missing(name)
    if not isinstance(value, (str, list)):
        wrong_type(name, f"a string or an array{of}", value)
    return value


def missing(where: str) -> NoReturn:
    raise InvalidRequest(f"The field `{where}` is missing.", param=where)


def wrong_type(where: str, expected: str, value: object) -> NoReturn:
    raise InvalidRequest(f"`{where}` must be {expected}, not {json_type(value)}.", param=where)


def json_type(value: object) -> str:
    return _TYPE_NAMES[type(value)]
