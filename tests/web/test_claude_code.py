"""A request as Claude Code sends it, with any backend."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from importlib import metadata
from typing import Any

import pytest
from fakes import Fake, Served, make_instance, serving
from multidict import CIMultiDict
from official import anthropic

from nexus_gateway.provider import Provider
from nexus_gateway.secret import Secret
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream

NATIVE: type[Provider] = metadata.entry_points(group="nexus_gateway.providers")["anthropic"].load()
CACHED = {"cache_control": {"type": "ephemeral"}}
PNG = "iVBORw0KGgo="
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
BETAS = "claude-code-20250219,interleaved-thinking-2025-05-14,context-management-2025-06-27"
HEADERS = {
    "anthropic-version": "2023-06-01",
    "anthropic-beta": BETAS,
    "anthropic-dangerous-direct-browser-access": "true",
    "authorization": "Bearer caller",
    "x-app": "cli",
    "x-stainless-lang": "js",
    "user-agent": "claude-cli/2.1.0 (external, cli)",
}


def tool(name: str, **properties: str) -> dict[str, Any]:
    kinds = {key: {"type": kind} for key, kind in properties.items()}
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object"}
    parameters = {
        **schema,
        "properties": kinds,
        "required": [*kinds],
        "additionalProperties": False,
    }
    return {"name": name, "description": f"Use {name}.\n\nUsage:\n- …", "input_schema": parameters}


def text(content: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": content, **more}


def use(id: str, name: str, **input: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": id, "name": name, "input": input}


def result(id: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": id, "content": content, **more}


TOOLS = [
    tool("Task", description="string", prompt="string"),
    tool("Bash", command="string", timeout="number"),
    tool("Read", file_path="string", offset="number"),
    tool("Edit", file_path="string", old_string="string", new_string="string"),
    tool("TodoWrite", todos="array"),
    tool("mcp__files__list") | CACHED,
]
REQUEST: dict[str, Any] = {
    "model": "claude-sonnet-5-5",
    "max_tokens": 32000,
    "stream": True,
    "metadata": {"user_id": "user_0123_account__session_4567"},
    "thinking": {"type": "adaptive"},
    "output_config": {"effort": "high"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "system": [
        text("You are Claude Code.", **CACHED),
        text("Working directory: /src", cache_control={"type": "ephemeral", "ttl": "1h"}),
    ],
    "tools": TOOLS,
    "messages": [
        {
            "role": "user",
            "content": [text("<system-reminder>…</system-reminder>"), text("Fix it.")],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Look first.", "signature": "EqoBsigned=="},
                text("I look at it."),
                use("toolu_01", "Read", file_path="/src/a.png"),
                use("toolu_02", "Bash", command="make test"),
            ],
        },
        {
            "role": "user",
            "content": [
                result("toolu_01", [text("A picture:"), IMAGE]),
                result("toolu_02", "exit code 2", is_error=True),
                text("Go on.", **CACHED),
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "redacted_thinking", "data": "Ezzz"},
                use("toolu_03", "TodoWrite", todos=[{"content": "fix", "status": "pending"}]),
            ],
        },
        {"role": "user", "content": [result("toolu_03", [text("Saved.", **CACHED)], **CACHED)]},
    ],
}


@pytest.fixture(params=["chat", "native"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def served(backend: str, upstream: FakeUpstream) -> AsyncIterator[Served]:
    provider, name = (NATIVE, "anthropic") if backend == "native" else (Fake, "fake")
    instance = make_instance(upstream, provider=provider, name=name)
    async with serving(instance, gateway_keys=(Secret("caller"),)) as gateway:
        yield gateway


@pytest.fixture
async def client(served: Served) -> AsyncIterator[anthropic.AsyncAnthropic]:
    url = served.url
    async with anthropic.AsyncAnthropic(base_url=url, auth_token="caller", max_retries=0) as client:
        yield client


async def run(client: anthropic.AsyncAnthropic) -> Any:
    """Send the request; the client's accumulator joins the events."""
    fields = {k: v for k, v in REQUEST.items() if k != "stream"}
    betas = HEADERS["anthropic-beta"].split(",")
    async with client.beta.messages.stream(**fields, betas=betas) as stream:
        return await stream.get_final_message()


async def test_the_raw_request_is_streamed(served: Served) -> None:
    status, body, headers = await served.post("/v1/messages?beta=true", REQUEST, headers=HEADERS)
    assert status == 200, body
    assert headers["Content-Type"].startswith("text/event-stream")
    events = [event.split("\n") for event in body.strip().split("\n\n")]
    kinds = [json.loads(data.removeprefix("data: "))["type"] for _, data in events]
    assert [name.removeprefix("event: ") for name, _ in events] == kinds
    assert (kinds[0], *kinds[-3:]) == (
        *("message_start", "content_block_stop", "message_delta", "message_stop"),
    )


async def test_an_answer_is_parsed(client: anthropic.AsyncAnthropic) -> None:
    message = await run(client)
    assert [(b.type, b.text) for b in message.content] == [("text", Reply().text)]
    assert message.stop_reason == "end_turn"
    assert message.usage.input_tokens == 7
    assert message.usage.output_tokens == len(Reply().text.split(" "))


async def test_thinking_and_a_tool_call_are_parsed(
    client: anthropic.AsyncAnthropic, upstream: FakeUpstream
) -> None:
    upstream.default = Reply(tool_calls=True, reasoning=True)
    message = await run(client)
    thought, used = message.content
    assert (thought.type, thought.thinking) == ("thinking", "Hm. ")
    assert thought.signature
    assert (used.type, used.name, used.input) == ("tool_use", "get_weather", {"city": "Paris"})
    assert message.stop_reason == "tool_use"


async def test_an_answer_can_be_sent_back(
    client: anthropic.AsyncAnthropic, upstream: FakeUpstream
) -> None:
    upstream.default = Reply(tool_calls=True, reasoning=True)
    message = await run(client)
    turn = {"role": "assistant", "content": [b.to_dict() for b in message.content]}
    answer = {"role": "user", "content": [result("call_1", "19 C")]}
    fields = {**REQUEST, "messages": [*REQUEST["messages"], turn, answer]}
    del fields["stream"]
    async with client.beta.messages.stream(**fields) as stream:
        await stream.until_done()
    assert b"nexus-unsealed" not in upstream.requests[1].raw


@pytest.mark.parametrize("backend", ["chat"], indirect=True)
async def test_a_chat_backend_receives_only_known_fields(
    served: Served, upstream: FakeUpstream
) -> None:
    await served.post("/v1/messages?beta=true", REQUEST, headers=HEADERS)
    (received,) = upstream.requests
    for left_out in (b"cache_control", b"thinking", b"signature", b"is_error", b"metadata"):
        assert left_out not in received.raw
    body = received.body
    assert (body["model"], body["stream"], body["max_tokens"]) == ("fake-large", True, 32000)
    assert body["stream_options"] == {"include_usage": True}
    assert body.keys() <= {
        *("model", "stream", "stream_options", "messages", "tools", "max_tokens"),
        *("reasoning_effort", "max_completion_tokens"),
    }
    assert body["tools"] == [
        {
            "type": "function",
            "function": {
                "name": definition["name"],
                "description": definition["description"],
                "parameters": definition["input_schema"],
            },
        }
        for definition in TOOLS
    ]
    sent = {name.lower() for name in received.headers}
    assert not sent & {"anthropic-beta", "anthropic-version", "x-app", "x-stainless-lang"}


@pytest.mark.parametrize("backend", ["chat"], indirect=True)
async def test_a_chat_backend_receives_translated_messages(
    served: Served, upstream: FakeUpstream
) -> None:
    await served.post("/v1/messages?beta=true", REQUEST, headers=HEADERS)
    system, asked, called, read, ran, shown, planned, saved = upstream.requests[0].body["messages"]
    assert system == {
        "role": "system",
        "content": "You are Claude Code.\n\nWorking directory: /src",
    }
    assert (asked["role"], [p["text"] for p in asked["content"]]) == (
        *("user", ["<system-reminder>…</system-reminder>", "Fix it."]),
    )
    assert (called["role"], called["content"]) == ("assistant", "I look at it.")
    calls = [(c["id"], c["type"], c["function"]["name"]) for c in called["tool_calls"]]
    assert calls == [("toolu_01", "function", "Read"), ("toolu_02", "function", "Bash")]
    assert json.loads(called["tool_calls"][1]["function"]["arguments"]) == {"command": "make test"}
    assert (read["role"], read["tool_call_id"]) == ("tool", "toolu_01")
    assert read["content"].startswith("A picture:")
    assert ran == {"role": "tool", "tool_call_id": "toolu_02", "content": "Error:\nexit code 2"}
    assert shown["role"] == "user"
    assert shown["content"] == [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
        {"type": "text", "text": "Go on."},
    ]
    assert (planned["role"], planned["content"]) == ("assistant", None)
    assert planned["tool_calls"][0]["id"] == "toolu_03"
    assert saved == {"role": "tool", "tool_call_id": "toolu_03", "content": "Saved."}


@pytest.mark.parametrize("backend", ["native"], indirect=True)
async def test_repeated_beta_headers_are_joined(served: Served, upstream: FakeUpstream) -> None:
    lines = [("anthropic-beta", beta) for beta in BETAS.split(",")]
    head = CIMultiDict([*lines, ("authorization", "Bearer caller")])
    url = served.url + "/v1/messages"
    async with served.session.post(url, json=REQUEST, headers=head) as answer:
        assert answer.status == 200
        await answer.read()
    sent = upstream.requests[0].headers["anthropic-beta"]
    assert [beta.strip() for beta in sent.split(",")] == BETAS.split(",")


@pytest.mark.parametrize("backend", ["native"], indirect=True)
async def test_a_native_backend_receives_the_request_unchanged(
    served: Served, upstream: FakeUpstream
) -> None:
    await served.post("/v1/messages?beta=true", REQUEST, headers=HEADERS)
    (received,) = upstream.requests
    assert received.body == REQUEST
    head = {name.lower(): value for name, value in received.headers.items()}
    assert head["anthropic-beta"] == BETAS
    assert head["anthropic-version"] == HEADERS["anthropic-version"]
    assert "caller" not in " ".join(head.values())
    assert not {"x-app", "x-stainless-lang", "authorization"} & head.keys()
