"""What an upstream's answer means: to the instance, and to the request. One table.

| upstream says                         | outcome      | the request                       |
|---------------------------------------|--------------|-----------------------------------|
| 400 413-415 422 431, 403 moderated    | REFUSED      | passed to the caller, no retry    |
| 404                                   | REFUSED      | passed if the caller named it     |
| 401 402 403, insufficient_quota       | BAD_KEY      | next candidate                    |
| 429                                   | RATE_LIMITED | next candidate                    |
| everything else that is not 2xx       | FAILURE      | next candidate                    |

A 5xx that says when to come back is left alone for so long, beside what its circuit does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from nexus_gateway.secret import SHORTEST_SECRET, Secret
from nexus_gateway.wire import json_codec

_LONGEST_MESSAGE = 2000
_MOST_BRACKETS = 200
_BEGINNING = 8  # of a key: what others show of it as harmless
_NO_REASON = "The upstream gave no reason."


def read_error(body: bytes) -> dict[str, Any]:
    """Return the error of a body in OpenAI's shape, whatever the upstream made of it."""
    try:
        value = json_codec.loads(body)
    except json_codec.JSONError:
        value = None
    if isinstance(value, list) and value:
        value = value[0]
    return normalise_error(value.get("error", value) if isinstance(value, dict) else None)


def normalise_error(error: object) -> dict[str, Any]:
    """Bring an upstream's error into OpenAI's shape: four fields, `code` a string or null."""
    if not isinstance(error, dict):
        message = error if isinstance(error, str) and error else _NO_REASON
        error = {"message": message}
    code = error.get("code")
    known = {
        "message": (_text_or_none(error.get("message")) or _NO_REASON)[:_LONGEST_MESSAGE],
        "type": _text_or_none(error.get("type")) or "upstream_error",
        "param": _text_or_none(error.get("param")),
        "code": None if code is None or isinstance(code, (dict, list)) else str(code),
    }
    return {**(error if _is_shallow(error) else {}), **known}


def _is_shallow(value: object) -> bool:
    """Tell whether a value can be sent on: deep nesting is an attack on whoever walks it."""
    try:
        text = json_codec.dumps(value)
    except json_codec.JSONError:
        return False
    return text.count(b"[") + text.count(b"{") <= _MOST_BRACKETS


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) else None


def masked(error: Mapping[str, Any], key: Secret) -> dict[str, Any]:
    """Return an upstream's error without its key: some repeat it, or how it begins."""
    if len(key.reveal()) < SHORTEST_SECRET:
        return dict(error)
    whole, begun = (json_codec.dumps(k)[1:-1] for k in (key.reveal(), key.reveal()[:_BEGINNING]))
    said = json_codec.dumps(error).replace(whole, b"***")
    found: dict[str, Any] = json_codec.loads(re.sub(re.escape(begun) + rb'[^\s"\\]*', b"***", said))
    return found
