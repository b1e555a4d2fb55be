"""Part of the plugin contract: small changes to a chat, for a provider's `prepare`.

Each returns the chat it was given where there is nothing to change, so that the caller's own
bytes can be sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Chat = Mapping[str, Any]


def renamed(chat: Chat, **names: str) -> Chat:
    """Give fields other names; where the new name is present too, it keeps its value.

    Args:
        chat: the body.
        names: the new name of each old one.
    """
    if not any(old in chat for old in names):
        return chat
    moved = {new: chat[old] for old, new in names.items() if old in chat}
    return {**moved, **{k: v for k, v in chat.items() if k not in names}}


def without(chat: Chat, *names: str) -> Chat:
    """Leave fields out."""
    if not any(name in chat for name in names):
        return chat
    return {k: v for k, v in chat.items() if k not in names}


def with_roles(chat: Chat, **roles: str) -> Chat:
    """Give messages other roles.

    Args:
        chat: the body.
        roles: the new role of each old one.
    """
    if not any(message["role"] in roles for message in chat["messages"]):
        return chat
    messages = [{**m, "role": roles.get(m["role"], m["role"])} for m in chat["messages"]]
    return {**chat, "messages": messages}
