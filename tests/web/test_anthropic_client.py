"""Anthropic's official client with both kinds of backend."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import pytest
from fakes import HELLO, KEYS, Served, make_instance, serving
from official import anthropic

from nexus_gateway.provider import Provider
from nexus_gateway.secret import Secret
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream

NATIVE: type[Provider] = metadata.entry_points(group="nexus_gateway.providers")["anthropic"].load()
MODEL = "claude-sonnet-5-5"
ASK: dict[str, Any] = {"model": MODEL, "max_tokens": 100, **HELLO}
TOOL = {
    "name": "get_weather",
    "description": "Return the weather.",
    "input_schema": {"type": "object"},
}
SEARCH = {"type": "web_search_20250305", "name": "web_search"}
WORDS = len(Reply().text.split(" "))
PNG = "iVBORw0KGgo="
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
# Bytes that no JSON encoder would reproduce.
MESSAGE = (
    b'{ "usage":{"output_tokens": 1},"type":"message", "content" :[{"odd": "\\u00e9 1.50"}]}\n'
)
EVENTS = {
    b"message_start": b'{"message":{"id":"m","usage":{"input_tokens":3}},"type":"message_start"}',
    b"ping": b'{"type": "ping"}',
    b"content_block_delta": b'{"type":"content_block_delta","delta":{"text":"\\u00e9"}, "index":0}',
    b"new": b'{"type":"new","a":[1.50]}',
    b"message_stop": b'{"type":"message_stop"}',
}
STREAM = b"".join(b"event: %b\ndata: %b\n\n" % event for event in EVENTS.items())


def behind(*backends: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("backend", backends, indirect=True)


both = pytest.mark.parametrize("stream", [True, False], ids=["stream", "complete"])


@dataclass
class Setup:
    client: anthropic.AsyncAnthropic
    served: Served
    upstream: FakeUpstream
    backend: str


@pytest.fixture(params=["chat", "native"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def setup(backend: str, upstream: FakeUpstream) -> AsyncIterator[Setup]:
    native = make_instance(upstream, provider=NATIVE, name="anthropic", number=2)
    instances = {"chat": make_instance(upstream), "native": native}
    behind = [instances[name] for name in backend.split()]
    async with (
        serving(*behind, gateway_keys=(Secret("caller"),), max_attempts=1) as served,
        anthropic.AsyncAnthropic(base_url=served.url, api_key="caller", max_retries=0) as client,
    ):
        yield Setup(client, served, upstream, backend)


async def ask(setup: Setup, stream: bool, **fields: Any) -> Any:
    if not stream:
        return await setup.client.messages.create(**{**ASK, **fields})
    async with setup.client.messages.stream(**{**ASK, **fields}) as stream_manager:
        return await stream_manager.get_final_message()


async def keep(events: AsyncIterator[Any], seen: list[Any]) -> None:
    async for event in events:
        seen.append(event)


@both
async def test_a_system_prompt_reaches_the_backend(setup: Setup, stream: bool) -> None:
    message = await ask(setup, stream, system="Be brief.", stop_sequences=["END"])
    assert (message.role, message.stop_reason) == ("assistant", "end_turn")
    assert [(b.type, b.text) for b in message.content] == [("text", Reply().text)]
    assert (message.usage.input_tokens, message.usage.output_tokens) == (7, WORDS)
    assert message.model == ("Fake (Key #1)" if setup.backend == "chat" else "fake-model")
    (received,) = setup.upstream.requests
    if setup.backend == "chat":
        system = {"role": "system", "content": "Be brief."}
        assert received.body["messages"] == [system, *HELLO["messages"]]
        assert (received.body["max_tokens"], received.body["stop"]) == (100, ["END"])
    else:
        asked = {**ASK, "system": "Be brief.", "stop_sequences": ["END"]}
        assert received.body == ({**asked, "stream": True} if stream else asked)


async def test_events_arrive_in_order(setup: Setup) -> None:
    stream = await setup.client.messages.create(**ASK, stream=True)
    assert stream.response.headers["request-id"]
    events = [event async for event in stream]
    begin, deltas = ["message_start", "content_block_start"], ["content_block_delta"] * WORDS
    end = ["content_block_stop", "message_delta", "message_stop"]
    assert [event.type for event in events] == [*begin, *deltas, *end]
    assert "".join(e.delta.text for e in events[2:-3]) == Reply().text


async def test_the_text_stream_is_complete(setup: Setup) -> None:
    async with setup.client.messages.stream(**ASK) as stream:
        texts = [text async for text in stream.text_stream]
        message = await stream.get_final_message()
    assert "".join(texts) == message.content[0].text == Reply().text
    assert len(texts) == message.usage.output_tokens == WORDS


STOPS = {
    "end_turn": Reply(),
    "max_tokens": Reply(finish="length"),
    "refusal": Reply(finish="content_filter"),
    "tool_use": Reply(tool_calls=True),
}


@both
@pytest.mark.parametrize("reason", STOPS)
async def test_stop_reasons_are_translated(setup: Setup, reason: str, stream: bool) -> None:
    setup.upstream.default = STOPS[reason]
    assert (await ask(setup, stream, tools=[TOOL])).stop_reason == reason


@both
async def test_a_tool_call_works_over_two_turns(setup: Setup, stream: bool) -> None:
    setup.upstream.script(Reply(tool_calls=True), Reply(text="Nineteen."))
    first = await ask(setup, stream, tools=[TOOL])
    (used,) = first.content
    assert (used.id, used.name, used.input) == ("call_1", "get_weather", {"city": "Paris"})
    result = {"type": "tool_result", "tool_use_id": used.id, "content": "19 C"}
    messages = [
        *HELLO["messages"],
        {"role": "assistant", "content": [block.to_dict() for block in first.content]},
        {"role": "user", "content": [result, {"type": "text", "text": "In words."}]},
    ]
    second = await ask(setup, stream, tools=[TOOL], messages=messages)
    assert (second.content[0].text, second.stop_reason) == ("Nineteen.", "end_turn")
    sent = setup.upstream.requests[1].body
    if setup.backend == "native":
        assert (sent["messages"], sent["tools"]) == (messages, [TOOL])
        return
    _, called, result_message, user_message = sent["messages"]
    function = called["tool_calls"][0]["function"]
    assert (function["name"], json.loads(function["arguments"])) == ("get_weather", used.input)
    assert result_message == {"role": "tool", "tool_call_id": "call_1", "content": "19 C"}
    assert user_message == {"role": "user", "content": "In words."}
    assert sent["tools"][0]["function"]["parameters"] == TOOL["input_schema"]


FUNCTION = {"type": "function", "function": {"name": "get_weather"}}
ALONE = {"disable_parallel_tool_use": True}
CHOICES: list[tuple[Any, Any]] = [
    ({"type": "auto"}, {"tool_choice": "auto"}),
    ({"type": "any"}, {"tool_choice": "required"}),
    ({"type": "none"}, {"tool_choice": "none"}),
    ({"type": "tool", "name": "get_weather"}, {"tool_choice": FUNCTION}),
    ({"type": "auto", **ALONE}, {"tool_choice": "auto", "parallel_tool_calls": False}),
]


@pytest.mark.parametrize(("choice", "as_chat"), CHOICES)
async def test_tool_choice_is_translated(
    setup: Setup, choice: Any, as_chat: dict[str, Any]
) -> None:
    await ask(setup, False, tools=[TOOL], tool_choice=choice)
    expected = as_chat if setup.backend == "chat" else {"tool_choice": choice}
    names = ("tool_choice", "parallel_tool_calls")
    assert {k: v for k, v in setup.upstream.requests[0].body.items() if k in names} == expected


async def test_an_image_reaches_the_backend(setup: Setup) -> None:
    content = [{"type": "text", "text": "What is this?"}, IMAGE]
    await ask(setup, False, messages=[{"role": "user", "content": content}])
    url = {"url": f"data:image/png;base64,{PNG}"}
    shown = IMAGE if setup.backend == "native" else {"type": "image_url", "image_url": url}
    assert setup.upstream.requests[0].body["messages"][0]["content"] == [content[0], shown]


@both
@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (400, "BadRequestError", "invalid_request_error"),
        (404, "NotFoundError", "not_found_error"),
        (413, "APIStatusError", "request_too_large"),
        (429, "RateLimitError", "rate_limit_error"),
        (401, "InternalServerError", "overloaded_error"),
        (500, "InternalServerError", "overloaded_error"),
        (529, "InternalServerError", "overloaded_error"),
    ],
)
async def test_errors_have_the_clients_types(
    setup: Setup, status: int, error: str, kind: str, stream: bool
) -> None:
    setup.upstream.default = Reply(status=status)
    model = "fake/some" if setup.backend == "chat" else MODEL
    with pytest.raises(getattr(anthropic, error)) as raised:
        await setup.client.messages.create(**{**ASK, "model": model}, stream=stream)
    assert raised.value.request_id
    error_body = raised.value.body["error"]
    assert (raised.value.body["type"], error_body["type"]) == ("error", kind)
    if kind not in ("overloaded_error", "rate_limit_error"):
        assert (raised.value.status_code, error_body["message"]) == (status, f"Scripted {status}.")


async def test_a_wrong_key_is_an_authentication_error(setup: Setup) -> None:
    unauthenticated = setup.client.with_options(api_key="no")
    with pytest.raises(anthropic.AuthenticationError) as raised:
        await unauthenticated.messages.create(**ASK)
    assert raised.value.body["error"]["type"] == "authentication_error"
    assert raised.value.request_id
    assert setup.upstream.hits() == 0


BREAKS = {"cut_after": "connection broke", "end_after": "cut the", "error_after": "Overloaded"}


@pytest.mark.parametrize(("fault", "words"), BREAKS.items())
async def test_a_broken_stream_raises(setup: Setup, fault: str, words: str) -> None:
    setup.upstream.default = Reply(delay_s=0.01, **{fault: 3})
    seen: list[Any] = []
    stream = await setup.client.messages.create(**ASK, stream=True)
    with pytest.raises(anthropic.APIStatusError, match=words) as raised:
        await keep(stream, seen)
    texts = [event.delta.text for event in seen if event.type == "content_block_delta"]
    assert "".join(texts) == "Hello from the"
    assert raised.value.request_id
    native = (setup.backend, fault) == ("native", "error_after")
    kind = "overloaded_error" if native else "api_error"
    assert (raised.value.body["type"], raised.value.body["error"]["type"]) == ("error", kind)


@behind("native")
@both
async def test_native_bytes_are_not_changed(setup: Setup, stream: bool) -> None:
    sent, kind = (STREAM, "text/event-stream") if stream else (MESSAGE, "application/json")
    setup.upstream.default = Reply(body=sent, content_type=kind)
    url, head = setup.served.url + "/v1/messages", {"x-api-key": "caller"}
    body = {**ASK, "stream": stream}
    async with setup.served.session.post(url, json=body, headers=head) as answer:
        assert (answer.status, answer.content_type) == (200, kind)
        assert await answer.read() == sent


async def test_only_allowed_headers_reach_the_backend(setup: Setup) -> None:
    beta = {"anthropic-beta": "context-management-2025-06-27,other-2026"}
    head = {**beta, "anthropic-version": "2023-06-01", "x-private": "mine"}
    message = await setup.client.messages.create(**ASK, extra_headers=head)
    assert message._request_id
    (received,) = setup.upstream.requests
    head = {name.lower(): value for name, value in received.headers.items()}
    assert "caller" not in " ".join(head.values())
    assert "x-private" not in head
    if setup.backend == "native":
        assert (received.path, head["x-api-key"]) == ("/v1/messages", KEYS[1])
        assert head["anthropic-beta"] == beta["anthropic-beta"]
        assert head["anthropic-version"] == "2023-06-01"
        assert "authorization" not in head
    else:
        assert (received.path, received.key) == ("/v1/chat/completions", KEYS[0])
        assert not {"x-api-key", "anthropic-beta", "anthropic-version"} & head.keys()


@behind("native", "chat native")
async def test_tokens_are_counted_natively(setup: Setup) -> None:
    counted = await setup.client.messages.count_tokens(model=MODEL, **HELLO)
    assert counted.input_tokens == 7
    (received,) = setup.upstream.requests
    assert (received.path, received.key) == ("/v1/messages/count_tokens", KEYS[1])
    assert received.body == {"model": MODEL, **HELLO}


@behind("native", "chat native")
@pytest.mark.parametrize("model", [MODEL, "auto"])
@both
async def test_an_anthropic_tool_reaches_a_native_backend(
    setup: Setup, stream: bool, model: str
) -> None:
    message = await ask(setup, stream, model=model, tools=[SEARCH])
    assert message.content[0].text == Reply().text
    (received,) = setup.upstream.requests
    assert (received.body["tools"], received.body["model"]) == ([SEARCH], MODEL)


@behind("chat")
async def test_anthropic_only_features_need_a_native_backend(setup: Setup) -> None:
    with pytest.raises(anthropic.BadRequestError, match=r"tools\[0\]\.type") as raised:
        await ask(setup, False, tools=[SEARCH])
    assert raised.value.body["error"]["param"] == "tools[0].type"
    assert setup.upstream.hits() == 0
