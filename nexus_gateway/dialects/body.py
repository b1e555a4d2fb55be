"""A caller's JSON body: parsed once, checked field by field, encoded once for all attempts.

The parts that change from attempt to attempt (`model`, `stream`, `stream_options`) are written in
front of the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, NoReturn

from nexus_gateway.errors import InvalidRequest
from nexus_gateway.wire import json_codec

MAX_DEPTH = 200
MAX_CONTAINERS = 50_000
# Before it is parsed: texts hold brackets too, so this is no more than a first sieve.
MAX_BRACKETS = 500_000
_CONTAINERS = (dict, list)
# Fields by which a body has chosen other gateways' upstream or key; they never travel on.
UNTRUSTED = frozenset({"api_base", "base_url", "api_key"})
_OPTIONS = "stream_options"
_NOT_IN_REST = UNTRUSTED | {"model", "stream", _OPTIONS}
_USAGE = b',"stream_options":{"include_usage":true}'


class Body:
    """A JSON object on its way to upstreams.

    Args:
        fields: the object.
        stream: what `stream` shall say; None for a body that has no such field.
    """

    content_type = "application/json"
    replayable = True

    def __init__(self, fields: Mapping[str, Any], stream: bool | None = None) -> None:
        self.fields = fields
        self._stream = stream

    @cached_property
    def _rest(self) -> dict[str, Any]:
        return {k: v for k, v in self.fields.items() if k not in _NOT_IN_REST}

    @cached_property
    def _encoded_rest(self) -> bytes:
        return json_codec.dumps(self._rest)

    @property
    def asks_usage(self) -> bool:
        """Whether it asks a stream for its usage."""
        options = self.fields.get(_OPTIONS)
        return isinstance(options, dict) and options.get("include_usage") is True

    @property
    def has_own_stream_options(self) -> bool:
        """Whether the caller wrote some options of streams himself."""
        return _OPTIONS in self.fields

    def _options(self, *, usage: bool) -> dict[str, Any]:
        """Return `stream_options` alone, with the wish for usage where it is to be added."""
        given = self.fields.get(_OPTIONS)
        if usage:
            return {_OPTIONS: {**(given if isinstance(given, dict) else {}), "include_usage": True}}
        return {_OPTIONS: given} if _OPTIONS in self.fields else {}

    def with_model(self, model: str, *, stream: bool, usage: bool = False) -> dict[str, Any]:
        """Return the fields as a provider shall see them; `usage` as in `encode`."""
        return {"model": model, "stream": stream, **self._options(usage=usage), **self._rest}

    def encode(self, model: str, *, usage: bool = False) -> bytes:
        """Return the body as bytes.

        Args:
            model: the upstream's name of it.
            usage: add to its own `stream_options` that a stream's usage is asked for.

        Raises:
            JSONError: it cannot be sent on.
        """
        head = b'{"model":' + json_codec.dumps(model)
        if self._stream is not None:
            head += b',"stream":true' if self._stream else b',"stream":false'
        if _OPTIONS in self.fields:
            head += b"," + json_codec.dumps(self._options(usage=usage))[1:-1]
        elif usage:
            head += _USAGE
        return head + (b"," + self._encoded_rest[1:] if self._rest else b"}")


def parse_object(data: bytes) -> dict[str, Any]:
    """Parse a body that must be a JSON object.

    Raises:
        InvalidRequest: it is none; the message says what is wrong and where.
    """
    brackets = data.count(b"{") + data.count(b"[")
    if brackets > MAX_BRACKETS:
        raise InvalidRequest("The body holds too many objects and arrays.")
    try:
        body = json_codec.loads_exact(data)
    except json_codec.JSONError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from error
    if not isinstance(body, dict):
        raise InvalidRequest(f"The body must be a JSON object, not {json_type(body)}.")
    if brackets > MAX_DEPTH:
        _check_shape(body)
    return body


def _check_shape(body: dict[str, Any]) -> None:
    """Refuse what nobody means and everybody would wait for: too deep, or in too many pieces.

    What passes can be walked and encoded once more by whoever has to, wherever that is.
    """
    level: list[Any] = [body]
    count = depth = 0
    while level:
        depth += 1
        below = [child for node in level for child in _children(node) if type(child) in _CONTAINERS]
        count += len(below)
        if depth > MAX_DEPTH or count > MAX_CONTAINERS:
            raise InvalidRequest(
                f"The body is nested more than {MAX_DEPTH} deep, or holds more than "
                f"{MAX_CONTAINERS} objects and arrays."
            )
        level = below


def _children(node: Any) -> Iterable[Any]:
    return node.values() if type(node) is dict else node


def validated(body: Body, model: str | None) -> Body:
    """Return a body that can be sent on; what cannot is said before any attempt.

    Args:
        body: the body.
        model: what the caller calls the model.

    Raises:
        InvalidRequest: it has no JSON form.
    """
    try:
        body.encode(model or "")
    except json_codec.JSONError as error:
        raise InvalidRequest(f"The body cannot be sent on: {error}.") from error
    return body


def optional(fields: Mapping[str, Any], name: str, kind: type, words: str, at: str = "") -> Any:
    """Return a field's value, None when absent.

    Args:
        fields: where it is.
        name: its name.
        kind: the Python type that it must have.
        words: what it must be, for people: `a string`.
        at: where the fields are, such as `tools[0].`.

    Raises:
        InvalidRequest: it is something else.
    """
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        wrong_type(at + name, words, value)
    return value


def required(fields: Mapping[str, Any], name: str, kind: type, words: str, at: str = "") -> Any:
    """Return a field's value; as `optional`, but it must be there."""
    if fields.get(name) is None:
        raise InvalidRequest(f"The field `{at}{name}` is missing.", param=at + name)
    return optional(fields, name, kind, words, at)


def wrong_type(where: str, words: str, value: object) -> NoReturn:
    """Say that a field must be something else."""
    raise InvalidRequest(f"`{where}` must be {words}, not {json_type(value)}.", param=where)


def json_type(value: object) -> str:
    """Name a JSON value's type as people do."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}
    names |= {int: "a number", float: "a number", type(None): "null"}
    return names[type(value)]
