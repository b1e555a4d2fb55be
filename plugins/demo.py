"""A provider that asks no model: it makes the first curl on a bare machine answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from nexus_gateway.provider import Answer, Call, InProcess, Model

WORD_S = 0.03
QUOTED = 80


class Demo(InProcess):
    """Streams the same answer to everybody, word by word, and says that it is a demo."""

    title = "Demo"
    default_model = "demo-1"
    models = (Model("demo-1", context=8_192, images=True),)

    async def generate(self, call: Call, answer: Answer) -> AsyncIterator[dict[str, Any]]:
        """Answer with a text about itself; the usage counts words, as there are no tokens."""
        asked = last_question(call.chat)
        words = reply(asked).split(" ")
        for number, word in enumerate(words):
            await asyncio.sleep(WORD_S)
            yield answer.text(word if number == 0 else f" {word}")
        yield answer.finish("stop")
        yield answer.usage(len(asked.split()), len(words))


def reply(asked: str) -> str:
    """Return the answer to a question."""
    quote = f'You asked: "{asked[:QUOTED]}{"…" if len(asked) > QUOTED else ""}". ' if asked else ""
    return (
        f"This is the Nexus Gateway demo: no model was asked, these words are always the same. "
        f"{quote}But the way they came is the real one: chosen by the scheduler, streamed word by "
        f"word. To get real answers, set a key such as GROQ_KEY_1 or GEMINI_KEY_1 and start the "
        f"gateway again."
    )


def last_question(chat: Mapping[str, Any]) -> str:
    """Return the text of the last user message on one line, or "" where there is none."""
    for message in reversed(chat.get("messages") or []):
        if isinstance(message, dict) and message.get("role") == "user":
            return " ".join(" ".join(_texts(message.get("content"))).split())
    return ""


def _texts(content: object) -> list[str]:
    """Return the texts of a message's content: a string, a list of parts, or nothing."""
    if isinstance(content, str):
        return [content]
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return [text for text in texts if isinstance(text, str)]
