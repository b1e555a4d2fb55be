"""Which conversation a request belongs to: the caller's name for it, or how it begins."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from nexus_gateway.dialects.base import Dialect
from nexus_gateway.dialects.chat import CHAT_COMPLETIONS, COMPLETIONS
from nexus_gateway.dialects.conversation import SAMPLE, conversation_of
from nexus_gateway.dialects.embeddings import EMBEDDINGS
from nexus_gateway.dialects.messages import MESSAGES
from nexus_gateway.dialects.responses import RESPONSES

SYSTEM = {"role": "system", "content": "You are brief."}
HELLO = {"role": "user", "content": "Hello"}
ANSWER = {"role": "assistant", "content": "Hi."}
MORE = {"role": "user", "content": "Tell me more"}


def number(
    body: Mapping[str, Any], dialect: Dialect = CHAT_COMPLETIONS, session: str = ""
) -> int | None:
    return conversation_of(dialect.parse(json.dumps(body).encode(), {}), session)


def chat(*messages: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": list(messages), **fields}


@pytest.mark.parametrize(
    ("dialect", "first", "later"),
    [
        (CHAT_COMPLETIONS, chat(HELLO), chat(HELLO, ANSWER, MORE)),
        (CHAT_COMPLETIONS, chat(SYSTEM, HELLO), chat(SYSTEM, HELLO, ANSWER, MORE)),
        (
            MESSAGES,
            chat(HELLO, max_tokens=9, system="You are brief."),
            chat(HELLO, ANSWER, MORE, max_tokens=9, system="You are brief."),
        ),
        (
            RESPONSES,
            {"model": "m", "instructions": "You are brief.", "input": "Hello"},
            {"model": "m", "instructions": "You are brief.", "input": [HELLO, ANSWER, MORE]},
        ),
    ],
)
def test_each_turn_has_the_number_of_the_first(
    dialect: Dialect, first: dict[str, Any], later: dict[str, Any]
) -> None:
    assert number(first, dialect) == number(later, dialect) is not None


def test_another_beginning_or_model_is_another_conversation() -> None:
    image = {"type": "image_url", "image_url": {"url": "https://images.example/1.png"}}
    other = {"type": "image_url", "image_url": {"url": "https://images.example/2.png"}}
    bodies = [
        chat(HELLO),
        chat(MORE),
        chat(SYSTEM, HELLO),
        chat(HELLO, model="n"),
        chat({"role": "user", "content": [{"type": "text", "text": "Hello"}, image]}),
        chat({"role": "user", "content": [{"type": "text", "text": "Hello"}, other]}),
        chat({"role": "user", "content": "a" * 4 * SAMPLE}),
        chat({"role": "user", "content": "a" * 4 * SAMPLE + "b"}),
    ]
    assert len({number(body) for body in bodies}) == len(bodies)


def test_the_first_name_that_is_given_counts() -> None:
    names: list[tuple[str, Mapping[str, Any]]] = [
        ("session", {"prompt_cache_key": "key", "metadata": {"user_id": "id"}, "user": "u"}),
        ("", {"prompt_cache_key": "key", "metadata": {"user_id": "id"}, "user": "u"}),
        ("", {"metadata": {"user_id": "id"}, "user": "u"}),
        ("", {"user": "u"}),
    ]
    for (session, fields), name in zip(names, ("session", "key", "id", "u"), strict=True):
        assert number(chat(HELLO, **fields), session=session) == number(chat(MORE, user=name))


@pytest.mark.parametrize(
    "fields", [{"user": ""}, {"user": 7}, {"prompt_cache_key": None}, {"metadata": ["user_id"]}]
)
def test_what_is_no_name_is_left_out(fields: Mapping[str, Any]) -> None:
    assert number(chat(HELLO, **fields)) == number(chat(HELLO))


def test_what_has_no_conversation() -> None:
    assert number({"model": "m", "prompt": "Once"}, COMPLETIONS) is None
    assert number({"model": "m", "input": "Once"}, EMBEDDINGS) is None
    assert number(chat(SYSTEM)) is None
    assert number({"model": "m", "prompt": "Once", "user": "u"}, COMPLETIONS) is not None


def test_the_number_is_the_same_in_every_process() -> None:
    assert number(chat(SYSTEM, HELLO)) == 1484775134
