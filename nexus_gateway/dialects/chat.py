"""A caller's chat completion: parsed once, checked for what the gateway itself reads.

Whatever else the body holds passes through. The parts that change from attempt to attempt
(`model`, `stream`) are written in front of the rest, which is encoded once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NoReturn

from nexus_gateway import json_codec
from nexus_gateway.errors import InvalidRequest

# Fields by which a body has chosen other gateways' upstream or key; they never travel on.
_NEVER_SENT = frozenset({"model", "stream", "api_base", "base_url", "api_key"})
_IMAGE_PARTS = frozenset({"image_url", "input_image", "image"})


@dataclass(frozen=True)
class ChatRequest:
    """What the caller asked for.

    Args:
        body: the body as parsed.
        model: the model asked for, None when absent.
        stream: whether the answer is streamed.
        images: whether a message holds an image.
    """

    body: Mapping[str, Any] = field(repr=False)
    model: str | None
    stream: bool
    images: bool

    @property
    def usage_wanted(self) -> bool:
        """Whether the caller asked for the usage chunk."""
        options = self.body.get("stream_options")
        return isinstance(options, dict) and options.get("include_usage") is True

    @cached_property
    def _rest(self) -> dict[str, Any]:
        return {k: v for k, v in self.body.items() if k not in _NEVER_SENT}

    @cached_property
    def _encoded_rest(self) -> bytes:
        return json_codec.dumps(self._rest)

    def chat(self, model: str, stream: bool) -> dict[str, Any]:
        """Return the body as a provider shall see it."""
        return {"model": model, "stream": stream, **self._rest}

    def encode(self, model: str) -> bytes:
        """Return the body as bytes, for an upstream that speaks OpenAI."""
        head = b'{"model":' + json_codec.dumps(model)
        return (
            head
            + (b',"stream":true,' if self.stream else b',"stream":false,')
            + self._encoded_rest[1:]
        )


def parse(data: bytes) -> ChatRequest:
    """Parse and check a body.

    Raises:
        InvalidRequest: it cannot be served; the message says what is wrong and where.
    """
    try:
        body = json_codec.loads_exact(data)
    except json_codec.JSONError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from error
    if not isinstance(body, dict):
        raise InvalidRequest(f"The body must be a JSON object, not {_kind(body)}.")
    model = _optional(body, "model", str, "a string")
    stream = _optional(body, "stream", bool, "true or false")
    _optional(body, "stream_options", dict, "an object")
    images = _check_messages(body.get("messages"))
    request = ChatRequest(body, model, stream if stream is not None else model is None, images)
    try:
        request.encode(model or "")  # what cannot be sent on is said before any attempt
    except json_codec.JSONError as error:
        raise InvalidRequest(f"The body cannot be sent on: {error}.") from error
    return request


def _check_messages(messages: object) -> bool:
    """Check the messages; tell whether one holds an image."""
    if messages is None:
        raise InvalidRequest("The field `messages` is missing.", param="messages")
    if not isinstance(messages, list):
        _refuse("messages", "an array", messages)
    if not messages:
        raise InvalidRequest("`messages` must not be empty.", param="messages")
    return any([_check_message(f"messages[{i}]", message) for i, message in enumerate(messages)])


def _check_message(where: str, message: object) -> bool:
    if not isinstance(message, dict):
        _refuse(where, "an object", message)
    if not isinstance(message.get("role"), str):
        _refuse(f"{where}.role", "a string", message.get("role"))
    content = message.get("content")
    if content is None or isinstance(content, str):
        return False
    if not isinstance(content, list):
        _refuse(f"{where}.content", "a string, an array of parts or null", content)
    for i, part in enumerate(content):
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            _refuse(f"{where}.content[{i}]", "an object with a `type`", part)
    return any(part["type"] in _IMAGE_PARTS for part in content)


def _optional(body: Mapping[str, Any], name: str, kind: type, words: str) -> Any:
    value = body.get(name)
    if value is not None and not isinstance(value, kind):
        _refuse(name, words, value)
    return value


def _refuse(where: str, words: str, value: object) -> NoReturn:
    raise InvalidRequest(f"`{where}` must be {words}, not {_kind(value)}.", param=where)


def _kind(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}
    names |= {int: "a number", float: "a number", type(None): "null"}
    return names[type(value)]
