"""The built-in providers, found like any other plugin: by their entry points."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import pytest
from plugin_points import built_in

from nexus_gateway.provider import API_VERSION, Account, Call, InProcess, Model, Outcome
from nexus_gateway.secret import Secret
from nexus_gateway.wire.chunks import Answer, fold

# title, base URL, its first models (the first is the default)
EXPECTED: dict[str, tuple[str, str, tuple[Model, ...]]] = {
    "groq": (
        "Groq",
        "https://api.groq.com/openai/v1",
        (
            Model("openai/gpt-oss-120b", 131_072, max_output=65_536),
            Model("openai/gpt-oss-20b", 131_072, max_output=65_536),
        ),
    ),
    "gemini": (
        "Gemini",
        "https://generativelanguage.googleapis.com/v1beta/openai",
        (
            Model("gemini-3.5-flash-lite", 1_048_576, True),
            Model("gemini-3.8-flash", 1_048_576, True),
        ),
    ),
    "openrouter": (
        "OpenRouter",
        "https://openrouter.ai/api/v1",
        (Model("openrouter/free", 200_000, True),),
    ),
    "cerebras": (
        "Cerebras",
        "https://api.cerebras.ai/v1",
        (Model("gpt-oss-120b", 131_072, False),),
    ),
    "demo": ("Demo", "", (Model("demo-1", 8_192, True),)),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_built_in_provider_is_as_documented(name: str) -> None:
    title, base_url, models = EXPECTED[name]
    cls = built_in(name)
    assert (cls.title, cls.base_url) == (title, base_url)
    assert cls.models[: len(models)] == models
    assert cls.default_model == models[0].id
    assert cls.api_version == API_VERSION
    assert cls.needs_key is (name != "demo")


# Withdrawn by their providers, with the dates.
GONE = {
    "groq": ("llama-4-scout-17b-16e-instruct", "llama-4-maverick"),  # 2026-07-17, 2026-03-09
    "gemini": ("gemini-2.5-flash",),  # 2026-12-01
    "cerebras": ("zai-glm-4.7",),  # before 2026-10
    "openrouter": ("deepseek/deepseek-r1-0528:free",),  # no date was announced
    "xai": ("grok-build-0.1",),  # 2026-11-19
}
OURS = [point.name for point in metadata.entry_points(group="nexus_gateway.providers")]


@pytest.mark.parametrize("name", OURS)
def test_what_a_provider_would_choose_is_listed_and_not_gone(name: str) -> None:
    cls = built_in(name)
    chosen = [model for model in (cls.default_model, *cls.successors) if model]
    listed = [model.id for model in cls.models]

    assert [model for model in chosen if model not in listed] == []
    assert len(chosen) == len(set(chosen))
    assert not {*chosen, *listed}.intersection(GONE.get(name, ()))


@pytest.mark.proves("S-05")
@pytest.mark.parametrize("name", [name for name in EXPECTED if name != "demo"])
def test_a_key_is_sent_only_in_a_header(name: str) -> None:
    provider = built_in(name)()
    assert provider.authorize(Secret("a-key")) == {"Authorization": "Bearer a-key"}
    assert "a-key" not in provider.base_url


def test_gemini_recognizes_a_wrong_key_by_its_reason() -> None:
    details = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}]
    error = {"code": 400, "message": "API key not valid.", "status": "INVALID_ARGUMENT"}
    provider = built_in("gemini")()
    wrong = json.dumps([{"error": {**error, "details": details}}]).encode()
    verdict = provider.read_failure(400, {}, wrong)
    assert verdict is not None
    assert (verdict.outcome, verdict.error) == (Outcome.BAD_KEY, None)
    # A caller's own text in an error must not park the key: in JSON it is escaped.
    quoted = json.dumps({"error": {**error, "message": '"reason": "API_KEY_INVALID"'}}).encode()
    assert provider.read_failure(400, {}, quoted) is None
    assert provider.read_failure(500, {}, wrong) is None


def test_openrouter_gets_the_gateways_name() -> None:
    assert built_in("openrouter").headers == {"X-Title": "Nexus Gateway"}


def test_built_ins_import_only_the_contract() -> None:
    for name in EXPECTED:
        module = built_in(name).__module__
        assert module == f"nexus_gateway_plugins.{name}"


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Make every sleep short, and record its length."""
    lengths: list[float] = []
    sleep = asyncio.sleep

    async def short_sleep(seconds: float) -> None:
        lengths.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", short_sleep)
    return lengths


async def ask(chat: Mapping[str, Any]) -> list[dict[str, Any]]:
    demo = built_in("demo")()
    assert isinstance(demo, InProcess)
    call = Call({"model": "demo-1", "stream": True, **chat}, Account(Secret(""), ""))
    answer = Answer("chatcmpl-1", 1, "demo-1")
    return [chunk async for chunk in demo.generate(call, answer)]


async def test_the_demo_streams_word_by_word(slept: list[float]) -> None:
    chunks = await ask({"messages": [{"role": "user", "content": "How are you?"}]})
    completion = fold(chunks)
    text = completion["choices"][0]["message"]["content"]
    assert "demo" in text
    assert '"How are you?"' in text
    assert "GROQ_KEY_1" in text
    assert completion["choices"][0]["finish_reason"] == "stop"
    assert len(chunks) == len(text.split()) + 2
    assert slept == [0.03] * len(text.split())
    assert chunks[-1]["usage"]["prompt_tokens"] == 3
    assert chunks[-1]["choices"] == []


@pytest.mark.usefixtures("slept")
async def test_the_demo_quotes_80_characters_at_most() -> None:
    completion = fold(await ask({"messages": [{"role": "user", "content": "x" * 200}]}))
    assert '"' + "x" * 80 + '…"' in completion["choices"][0]["message"]["content"]


PARTS = [
    {"type": "text", "text": "What is"},
    {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}},
    {"type": "text", "text": "this?"},
]


@pytest.mark.usefixtures("slept")
@pytest.mark.parametrize(
    ("chat", "quoted"),
    [
        ({"messages": [{"role": "user", "content": PARTS}]}, "What is this?"),
        ({"messages": [{"role": "user", "content": "one\n two"}]}, "one two"),
        (
            {
                "messages": [
                    {"role": "user", "content": "first"},
                    {"role": "user", "content": "last"},
                    {"role": "assistant", "content": "no"},
                ]
            },
            "last",
        ),
        ({"messages": [{"role": "user", "content": None}]}, None),
        ({"messages": [{"role": "user"}]}, None),
        ({"messages": [{"role": "user", "content": [None, {"text": 5}]}]}, None),
        ({"messages": [None]}, None),
        ({"messages": []}, None),
        ({}, None),
    ],
)
async def test_the_demo_accepts_any_content(chat: dict[str, Any], quoted: str | None) -> None:
    text = fold(await ask(chat))["choices"][0]["message"]["content"]
    if quoted is None:
        assert "You asked" not in text
    else:
        assert f'You asked: "{quoted}".' in text
