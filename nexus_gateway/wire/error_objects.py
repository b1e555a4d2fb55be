"""The error objects of upstreams, brought into OpenAI's shape and cleaned of keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from nexus_gateway.secret import SHORTEST_SECRET, Secret
from nexus_gateway.wire import json_codec

_LONGEST_MESSAGE = 2000
_MAX_BRACKETS = 200
_KEY_PREFIX = 8  # of a key: some upstreams quote so much of it, as if it were harmless
NO_REASON = "The upstream gave no reason."


def read_error(body: bytes) -> dict[str, Any] | None:
    """Return the error of a response's body in OpenAI's shape, whatever its own shape is.

    None if the body is no JSON object: then it comes from no API. One that was cut off is one.
    """
    try:
        value = json_codec.loads(body)
    except json_codec.JSONError:
        return normalise_error(None) if body.lstrip().startswith((b"{", b"[")) else None
    if isinstance(value, list) and value:  # Gemini's
        value = value[0]
    if not isinstance(value, dict):
        return None
    error = value.get("error")
    return normalise_error(value if error is None else error)


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
        "message": (_message(error) or NO_REASON)[:_LONGEST_MESSAGE],
        "type": _text_or_none(error.get("type")) or "upstream_error",
        "param": _text_or_none(error.get("param")),
        "code": None if code is None or isinstance(code, (dict, list)) else str(code),
    }
    return {**(error if _is_shallow(error) else {}), **known}


def _message(error: Mapping[str, Any]) -> str | None:
    return _text_or_none(error.get("message")) or _text_or_none(error.get("detail"))  # FastAPI's


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
