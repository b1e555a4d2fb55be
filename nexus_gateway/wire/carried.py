"""What callers carry for the gateway, which keeps no state, from one turn to the next.

Messages and Responses have no field for all that a chat's answer contains. So it is put into values
that clients treat as opaque and send back:

- In Messages, a tool call's `extra_content` is in the call's id. Such ids consist of letters,
  digits, `_` and `-`, as Anthropic's clients insist; an id of other characters is carried in one of
  these. If a client cuts or rewrites an id, what it carried is lost, but calls and results still
  match, as they are changed alike.
- In Responses, whose clients and backends refuse long ids, it is in the `encrypted_content` of an
  item of reasoning, as is the text of reasoning.
"""

from __future__ import annotations

import hashlib
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any

from nexus_gateway.wire import json_codec

IN_ID = "__nexus_"
REASONING = "nexus-reasoning."
CALL = "nexus-call."
LONGEST_ID = 64  # OpenAI's limit
_NOT_IN_IDS = re.compile("[^a-zA-Z0-9_-]")
_ID = "nexus_id"  # of an `extra_content`: the id that the backend gave the call


def plain_id(id: str) -> str:
    """Return the part of an id that Anthropic's backends take: alone it still tells calls apart."""
    plain, mark, _ = id.partition(IN_ID)
    kept = _NOT_IN_IDS.sub("_", plain if mark else id)
    return kept if kept == plain else f"{kept}_{_digest(plain)[:8]}"


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
    return _restored(plain, extra if isinstance(extra, dict) else {})


def is_loaded(carried: object) -> bool:
    """Return whether `encrypted_content` is the gateway's, and not a backend's."""
    return isinstance(carried, str) and carried.startswith((REASONING, CALL))


def load_call(id: str, extra: object) -> tuple[str, str | None]:
    """Return a tool call's id, not too long, and the `encrypted_content` with the rest, if any."""
    short, carried = id, extra if isinstance(extra, dict) else {}
    if len(id) > LONGEST_ID:
        short = f"call_{_digest(id)[:32]}"
        carried = {**carried, _ID: id}
    return short, CALL + _encoded(json_codec.dumps({short: carried})) if carried else None


def unload_call(carried: object) -> dict[str, tuple[str, dict[str, Any] | None]] | None:
    """Return what `unload_id` returns of a call, by the id that `load_call` gave it.

    None if the gateway did not load it.
    """
    if not isinstance(carried, str) or not carried.startswith(CALL):
        return None
    try:
        value = json_codec.loads(_decoded(carried.removeprefix(CALL)))
    except ValueError:
        value = None
    calls = value.items() if isinstance(value, dict) else ()
    return {short: _restored(short, extra) for short, extra in calls if isinstance(extra, dict)}


def _restored(plain: str, extra: dict[str, Any]) -> tuple[str, dict[str, Any] | None]:
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


def _digest(id: str) -> str:
    return hashlib.sha256(id.encode(errors="replace")).hexdigest()


def _encoded(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))
