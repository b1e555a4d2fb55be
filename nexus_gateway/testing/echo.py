"""What the mock says: the last message that it is sent, so that every answer can be checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nexus_gateway.continuation import GO_ON


def said_back(fields: Mapping[str, Any]) -> str | None:
    """Return what a request wants to hear again.

    Who is asked to go on with an answer that broke (`RESUME`) says only what of it is missing, as
    a model would that does as it is told.

    Args:
        fields: of the request's body.

    Returns:
        The text, which may be empty only where nothing is missing; None where there is none.
    """
    messages = fields.get("messages")
    texts = [_text(message) for message in messages] if isinstance(messages, list) else []
    if len(texts) > 2 and texts[-1] == GO_ON and texts[-3].startswith(texts[-2]):
        return texts[-3].removeprefix(texts[-2])
    prompt = fields.get("prompt")
    return (texts[-1] if texts else "") or (prompt if isinstance(prompt, str) else "") or None


def _text(message: object) -> str:
    """Return the text of a message, "" where there is none."""
    content = message.get("content") if isinstance(message, dict) else None
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return "".join(text for text in texts if isinstance(text, str))
