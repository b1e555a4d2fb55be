"""A provider without a model, so that the first curl works without any API key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from nexus_gateway.provider import Answer, Call, InProcess, Model

WORD_S = 0.03
QUOTED = 80


class Demo(InProcess):
    """Streams a fixed answer, word by word."""

    title = "Demo"
    default_model = "demo-1"
    models = (Model("demo-1", context=8_192, images=True),)

    async def generate(self, call: Call, answer: Answer) -> AsyncIterator[dict[str, Any]]:
        """Yield a text about the demo; the usage counts words, as there are no tokens."""
        question = _last_question(call.chat)
        words = _reply(question).split(" ")
        for number, word in enumerate(words):
            await asyncio.sleep(WORD_S)
            yield answer.text(word if number == 0 else f" {word}")
        yield answer.finish("stop")
        yield answer.usage(len(question.split()), len(words))


def _reply(question: str) -> str:
    quote = ""
    if question:
        quote = f'You asked: "{question[:QUOTED]}{"…" if len(question) > QUOTED else ""}". '
    return (
        f"This is the Nexus Gateway demo: no model was used, this text is always the same. "
        f"{quote}But it was served like a real answer: the scheduler chose this instance, and the "
        f"text was streamed word by word. To get real answers, set a key such as GROQ_KEY_1 or "
        f"GEMINI_KEY_1 and start the gateway again."
    )


def _last_question(chat: Mapping[str, Any]) -> str:
    """Return the text of the last user message on one line, or "" if there is none."""
    for message in reversed(chat.get("messages") or []):
        if isinstance(message, dict) and message.get("role") == "user":
            return " ".join(" ".join(_texts(message.get("content"))).split())
    return ""


def _texts(content: object) -> list[str]:
    if isinstance(content, str):
        return [content]
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return [text for text in texts if isinstance(text, str)]
