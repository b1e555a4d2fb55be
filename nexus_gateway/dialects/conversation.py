"""Which conversation a request belongs to, so that all its requests go to the same instance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from zlib import crc32

from nexus_gateway.dialects.base import Request
from nexus_gateway.dialects.body import Body

# So much of a text's beginning and of its end is read: more would tell few conversations apart, and
# those that are not told apart only share an instance.
SAMPLE = 512


def conversation_of(request: Request, session: str = "") -> int | None:
    """Return a number that all requests of a conversation share, the same in every process.

    It is made of the first that is given: the caller's `session`, the name that the body gives to
    its conversation or its user, the chat up to its first message of a user. None if there is none.
    """
    native = request.native
    if not session and isinstance(native, Body):
        session = _name(native.fields)
    if session:
        return _added(0, session)
    number = _added(0, request.model or "")
    for message in () if request.chat is None else request.chat.fields["messages"]:
        content = message.get("content")
        for text in (content,) if isinstance(content, str) else _texts(content):
            number = _added(number, text)
        if message["role"] == "user":
            return number
    return None


def _name(fields: Mapping[str, Any]) -> str:
    metadata = fields.get("metadata")
    user_id = metadata.get("user_id") if isinstance(metadata, dict) else None
    for name in (fields.get("prompt_cache_key"), user_id, fields.get("user")):
        if name and isinstance(name, str):
            return name
    return ""


def _texts(content: object) -> list[str]:
    """Return the texts of a message's parts, and the addresses of its images."""
    texts: list[str] = []
    for part in content if isinstance(content, list) else ():
        for value in part.values():
            if isinstance(value, dict):
                value = value.get("url")
            if isinstance(value, str):
                texts.append(value)
    return texts


def _added(number: int, text: str) -> int:
    if len(text) > 2 * SAMPLE:
        text = f"{text[:SAMPLE]}{text[-SAMPLE:]}{len(text)}"
    return crc32(text.encode("utf-8", "replace"), number) + 1
