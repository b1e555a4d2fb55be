"""The error objects of upstreams, brought into OpenAI's shape and cleaned of keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from nexus_gateway.secret import SHORTEST_SECRET, Secret
from nexus_gateway.wire import json_codec

_LONGEST_MESSAGE = 2000
_MAX_BRACKETS = 200
_MOST_LEVELS = 8  # of an error around an error
_STATUSES = ("code", "status", "status_code")  # of HTTP, as some state it beside the error
_KEY_PREFIX = 8  # of a key: some upstreams quote so much of it, as if it were harmless
NO_REASON = "The upstream gave no reason."


def read_error(body: bytes) -> dict[str, Any] | None:
    """Return the error of a response's body, as `read_stated`.

    None if the body is no JSON object: then it comes from no API. One that was cut off is one.
    """
    try:
        value = json_codec.loads(body)
    except json_codec.JSONError:
        return normalise_error(None) if body.lstrip().startswith((b"{", b"[")) else None
    first = value[0] if isinstance(value, list) and value else value
    return read_stated(value) if isinstance(first, dict) else None


def read_named(data: str) -> dict[str, Any]:
    """Return the error of an event named `error`: JSON of some shape, or only a text."""
    try:
        return read_stated(json_codec.loads(data))
    except json_codec.JSONError:
        return normalise_error(data)


def read_stated(stated: object) -> dict[str, Any]:
    """Return an upstream's error in OpenAI's shape, whatever its own shape is.

    The innermost object that says something is the error, with the status of those around it:

    - `{"error": {"message": …}}` of OpenAI and most, in an array of Gemini's
    - `{"error": "…", "status": 404}` of Ollama, with a `message` of Spring's
    - `{"object": "error", "message": …}` of vLLM
    - `{"detail": "…"}` and `{"detail": [{"msg": …}]}` of FastAPI, as a `message` of Mistral's
    """
    error: dict[str, Any] = {}
    for _ in range(_MOST_LEVELS):
        if isinstance(stated, list):
            stated = _listed(stated)
        if not isinstance(stated, dict):
            break
        around = {name: error[name] for name in _STATUSES if name in error}
        error, stated = {**around, **stated}, _says(stated)
    if isinstance(stated, str):
        error["message"] = stated
    if error.get("code") is None:
        numbers = (error.get(name) for name in _STATUSES)
        error["code"] = next((number for number in numbers if type(number) is int), None)
    return normalise_error(error)


def _says(error: Mapping[str, Any]) -> object:
    """Return what an object says of its error: an object, an array or a text; None if nothing."""
    inner = error.get("error")
    named = (error.get(name) for name in ("message", "detail"))
    says = (inner if not isinstance(inner, str) else None, *named, inner)
    return next((value for value in says if value and isinstance(value, str | dict | list)), None)


def _listed(faults: list[Any]) -> object:
    """Return FastAPI's faults in one line, or the first item of another array."""
    texts = [fault.get("msg") for fault in faults if isinstance(fault, dict)]
    line = "; ".join(text for text in texts if isinstance(text, str))
    return line or next(iter(faults), None)


def plain_text(body: bytes) -> str | None:
    """Return a body that is one short line of text; None if it is a page or something else."""
    text = body[:_LONGEST_MESSAGE].decode("utf-8", "replace").strip()
    return text if text.isprintable() and "<" not in text else None


def normalise_error(error: object) -> dict[str, Any]:
    """Bring an upstream's error into OpenAI's shape: four fields, `code` a string or null.

    Other fields are kept, unless the error is nested deeply: that may be an attack on its readers.
    """
    if not isinstance(error, dict):
        error = {"message": error}
    code = error.get("code")
    known = {
        "message": (_text_or_none(error.get("message")) or NO_REASON)[:_LONGEST_MESSAGE],
        "type": _text_or_none(error.get("type")) or "upstream_error",
        "param": _text_or_none(error.get("param")),
        "code": None if code is None or isinstance(code, (dict, list)) else str(code),
    }
    return {**(error if _is_shallow(error) else {}), **known}


def _is_shallow(value: object) -> bool:
    try:
        text = json_codec.dumps(value)
    except json_codec.JSONError:
        return False
    return text.count(b"[") + text.count(b"{") <= _MAX_BRACKETS


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) else None


def masked(error: Mapping[str, Any], key: Secret) -> dict[str, Any]:
    """Return an upstream's error without the key or its first characters, which some quote."""
    secret = key.reveal()
    if len(secret) < SHORTEST_SECRET:
        return dict(error)
    quoted, prefix = (json_codec.dumps(k)[1:-1] for k in (secret, secret[:_KEY_PREFIX]))
    text = json_codec.dumps(error).replace(quoted, b"***")
    text = re.sub(re.escape(prefix) + rb'[^\s"\\]*', b"***", text)
    clean: dict[str, Any] = json_codec.loads(text)
    return clean
