"""Answers as callers receive them: the text of the fake upstream, complete."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from nexus_gateway.testing.reply import Reply

TEXT = Reply().text


def chunks(text: str) -> list[Any]:
    events = [e for e in text.split("\n\n") if e]
    return [json.loads(e[6:]) for e in events if e.startswith("data: {")]


def text_of(text: str) -> str:
    choices = [c["choices"][0] for c in chunks(text) if c.get("choices")]
    return "".join(c["delta"].get("content") or "" for c in choices)


def assert_complete(answer: tuple[int, str, Mapping[str, str]], stream: bool = True) -> None:
    status, text, headers = answer
    assert status == 200, text
    if stream:
        assert text_of(text) == TEXT
        assert text.endswith("data: [DONE]\n\n")
        assert text.count("[DONE]") == 1
        assert {c["model"] for c in chunks(text)} == {headers["X-Nexus-Provider"]}
    else:
        body = json.loads(text)
        assert body["choices"][0]["message"]["content"] == TEXT
        assert body["model"] == headers["X-Nexus-Provider"]
