"""What callers carry for the gateway, which keeps no state, from one turn to the next.

Messages and Responses have no field for all that a chat's answer contains. So it is put into values
that clients treat as opaque and send back: a tool call's `extra_content` into the call's id, the
text of reasoning into `encrypted_content`. Ids consist of letters, digits, `_` and `-`, as
Anthropic's clients insist; an id of other characters is carried in one of these. If a client cuts
or rewrites an id, what it carried is lost, but calls and results still match, as they are changed
alike.
"""

from __future__ import annotations

import hashlib
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any

from nexus_gateway.wire import json_codec

IN_ID = "__nexus_"
REASONING = "nexus-reasoning."
_NOT_IN_IDS = re.compile("[^a-zA-Z0-9_-]")
_ID = "nexus_id"  # of an `extra_content`: the id that the backend gave the call


def plain_id(id: str) -> str:
    """Return the part of an id that Anthropic's backends take: alone it still tells calls apart."""
    plain, mark, _ = id.partition(IN_ID)
    kept = _NOT_IN_IDS.sub("_", plain if mark else id)
    if kept == plain:
        return kept
    return f"{kept}_{hashlib.sha256(plain.encode(errors='replace')).hexdigest()[:8]}"


def load_id(id: str, extra: object) -> str:
    """Return a tool call's id that carries its `extra_content`, if that is an object."""
    plain, carried = plain_id(id), extra if isinstance(extra, dict) else {}
    if plain != id:
        carried = {**carried, _ID: id}
    return f"{plain}{IN_ID}{_encoded(json_codec.dumps(carried))}" if carried else id


def unload_id(id: str) -> tuple[str, dict[str, Any] | None]:
    """Return the id that the backend gave a call, and the `extra_content` that it carried."""
    plain, mark, carried = id.partition(IN_ID)
    if not mark:
        return id, None
    try:
        extra = json_codec.loads(_decoded(carried))
    except ValueError:
        extra = None
    if not isinstance(extra, dict):
        return plain, None
    original = extra.pop(_ID, plain)
    return original if isinstance(original, str) else plain, extra or None


def load_reasoning(text: str) -> str:
    return REASONING + _encoded(text.encode())


def unload_reasoning(carried: object) -> str | None:
    """Return a text of reasoning; None if the gateway did not load it."""
    if not isinstance(carried, str) or not carried.startswith(REASONING):
        return None
    try:
        return _decoded(carried.removeprefix(REASONING)).decode()
    except ValueError:
        return ""


def _encoded(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))
