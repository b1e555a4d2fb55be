"""How some backends' requests and errors differ from OpenAI's."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import HELLO, serving
from plugin_points import built_in

from nexus_gateway.provider import (
    Account,
    Outcome,
    adapted,
    drop_fields,
    rename_fields,
    rename_roles,
)
from nexus_gateway.secret import Secret
from nexus_gateway.testing.gateway import instance_of
from nexus_gateway.testing.upstream import FakeUpstream

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "a": 1}


NO_EFFORT = {"reasoning_effort": "none"}
XHIGH = {"model": "gpt-5.4-mini", "reasoning_effort": "xhigh"}
HINTS = {
    **{"store": False, "metadata": {}, "prompt_cache_key": "k", "frequency_penalty": 1},
    **{"service_tier": "auto", "logit_bias": {}, "seed": 7},
}


def test_a_chat_without_changes_stays_the_same_object() -> None:
    assert rename_fields(CHAT, b="c") is CHAT
    assert drop_fields(CHAT, "b") is CHAT
    assert rename_roles(CHAT, developer="system") is CHAT


def test_a_field_that_already_exists_keeps_its_value() -> None:
    assert rename_fields({"old": 1}, old="new") == {"new": 1}
    assert rename_fields({"old": 1, "new": 2}, old="new") == {"new": 2}
    assert drop_fields(CHAT, "a", "b") == {k: v for k, v in CHAT.items() if k != "a"}
    renamed = rename_roles(
        {"messages": [{"role": "developer"}, {"role": "user"}]}, developer="system"
    )
    assert [m["role"] for m in renamed["messages"]] == ["system", "user"]


@pytest.mark.parametrize(
    ("name", "sent", "expected"),
    [
        ("openai", {"max_tokens": 5}, {"max_completion_tokens": 5}),
        ("openai", {"tools": [1]}, {"tools": [1], **NO_EFFORT}),
        ("openai", {"tools": [1], "reasoning_effort": "low"}, {"tools": [1], **NO_EFFORT}),
        ("openai", {"model": "gpt-5.4-mini", "reasoning_effort": "max"}, XHIGH),
        ("openai", {"model": "gpt-4o", "reasoning_effort": "low"}, {"model": "gpt-4o"}),
        ("groq", {"model": "groq/compound", "max_tokens": 32_000}, {"max_tokens": 8_192}),
        ("openai", {"model": "gpt-5.4-mini", "tools": [1]}, None),
        ("azure", {"max_tokens": 5}, {"max_completion_tokens": 5}),
        ("mistral", {"max_completion_tokens": 5}, {"max_tokens": 5}),
        ("mistral", {"seed": 7, "user": "u", "stream_options": {}}, {"random_seed": 7}),
        ("deepseek", {"max_completion_tokens": 5}, {"max_tokens": 5}),
        ("together", {"max_completion_tokens": 5}, {"max_tokens": 5}),
        ("gemini", {**HINTS, "temperature": 0.5}, {"temperature": 0.5}),
        ("groq", {"store": True, "verbosity": "low", "seed": 1}, {"seed": 1}),
        ("cerebras", {"metadata": {}, "logit_bias": {}, "seed": 1}, {"seed": 1}),
        ("openai", HINTS, None),
        ("openai", {"temperature": 0.5}, None),
        ("mistral", {"temperature": 0.5}, None),
    ],
)
async def test_a_backend_gets_its_own_fields(
    upstream: FakeUpstream, name: str, sent: dict[str, Any], expected: dict[str, Any] | None
) -> None:
    instance = instance_of(built_in(name), upstream.base_url, key="k" * 8, name=name)
    model = sent.get("model") or instance.model
    async with serving(instance) as served:
        body = {**HELLO, **sent, "model": f"{name}/{model}", "stream": False}
        assert (await served.chat(body))[0] == 200
    (received,) = upstream.requests
    expected_body = {
        **HELLO,
        **(sent if expected is None else expected),
        "model": model,
        "stream": False,
    }
    assert received.body == expected_body


EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


@pytest.mark.parametrize(
    ("name", "model", "expected"),
    [
        ("openai", "gpt-6.1-terra", "none low low medium high xhigh max"),
        ("openai", "gpt-5.6-sol", "none low low medium high xhigh max"),
        ("openai", "gpt-5.4-mini", "none low low medium high xhigh xhigh"),
        ("openai", "gpt-5.2-pro", "medium medium medium medium high xhigh xhigh"),
        ("openai", "gpt-5.3-codex", "low low low medium high xhigh xhigh"),
        ("openai", "gpt-5.1-2025-11-13", "none low low medium high high high"),
        ("openai", "gpt-5.1-codex", "low low low medium high high high"),
        ("openai", "gpt-5-mini", "minimal minimal low medium high high high"),
        ("openai", "gpt-5-pro", "high high high high high high high"),
        ("openai", "o4-mini", "low low low medium high high high"),
        ("openai", "gpt-4.1", ""),
        ("groq", "openai/gpt-oss-20b", "low low low medium high high high"),
        ("groq", "qwen/qwen3.8-27b", "none none default default default default default"),
        ("groq", "groq/compound", ""),
        ("gemini", "gemini-3.8-flash", "minimal minimal low medium high high high"),
        ("gemini", "gemini-2.5-flash", "none minimal low medium high high high"),
        ("openrouter", "any/model", "none minimal low medium high xhigh max"),
        ("cerebras", "gpt-oss-120b", "low low low medium high high high"),
        ("cerebras", "qwen-3.8-27b", "none low low medium high high high"),
        ("mistral", "mistral-small-latest", "none none high high high high high"),
        ("mistral", "codestral-latest", ""),
        ("deepseek", "deepseek-flash", "minimal minimal low medium high xhigh max"),
        ("together", "openai/gpt-oss-120b", "low low low medium high high high"),
        ("fireworks", "any", "none low low medium high xhigh max"),
    ],
)
@pytest.mark.parametrize("translated", [False, True], ids=["chat", "translated"])
def test_a_model_is_asked_for_an_effort_that_it_takes(
    name: str, model: str, expected: str, translated: bool
) -> None:
    provider = built_in(name)()
    chats = [{**CHAT, "model": model, "reasoning_effort": effort} for effort in EFFORTS]
    sent = [adapted(provider, chat, translated=translated) for chat in chats]
    efforts = [chat["reasoning_effort"] for chat in sent if "reasoning_effort" in chat]
    assert efforts == expected.split()


@pytest.mark.parametrize(
    ("name", "status", "headers", "body", "outcome"),
    [
        ("mistral", 429, {"x-ratelimit-limit-req-minute": "0"}, b"", Outcome.BAD_KEY),
        ("mistral", 429, {"x-ratelimit-limit-req-minute": "60"}, b"", None),
        (
            "xai",
            429,
            {},
            b'{"error":"Your team x has either used all available credits or"}',
            Outcome.BAD_KEY,
        ),
        ("xai", 429, {}, b"slow down", None),
        ("fireworks", 412, {}, b"", Outcome.BAD_KEY),
        ("fireworks", 500, {}, b"", None),
    ],
)
def test_a_failure_has_its_outcome(
    name: str, status: int, headers: dict[str, str], body: bytes, outcome: Outcome | None
) -> None:
    verdict = built_in(name)().read_failure(status, headers, body)
    assert (verdict and verdict.outcome) == outcome


@pytest.mark.parametrize(
    ("base_url", "version", "url"),
    [
        ("https://r.openai.azure.com", "", "/openai/v1/chat/completions"),
        ("https://r.openai.azure.com/openai/v1", "", "/openai/v1/chat/completions"),
        (
            "https://r.openai.azure.com",
            "2024-10-21",
            "/openai/deployments/my%2Fgpt/chat/completions?api-version=2024-10-21",
        ),
    ],
)
def test_azure_has_its_urls(base_url: str, version: str, url: str) -> None:
    azure = built_in("azure")()
    account = Account(Secret("k"), base_url, {"API_VERSION": version})
    assert azure.url(account, "chat", "my/gpt") == "https://r.openai.azure.com" + url
    assert azure.authorize(Secret("k")) == {"api-key": "k"}
