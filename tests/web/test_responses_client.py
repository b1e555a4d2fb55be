"""OpenAI's official client and its Responses API, with both kinds of backend."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from importlib import metadata
from typing import Any

import pytest
from fakes import Fake, Served, make_instance, serving
from official import openai

from nexus_gateway.provider import Provider
from nexus_gateway.secret import Secret
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream

NATIVE: type[Provider] = metadata.entry_points(group="nexus_gateway.providers")["anthropic"].load()
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {
    "type": "function",
    "name": "get_weather",
    "description": "Return the weather.",
    "parameters": SCHEMA,
}
FORM = {"type": "json_schema", "name": "place", "schema": SCHEMA, "strict": True}
PNG = "iVBORw0KGgo="
URL = f"data:image/png;base64,{PNG}"
WORDS = len(Reply().text.split(" "))
both = pytest.mark.parametrize("stream", [True, False], ids=["stream", "complete"])


@pytest.fixture(params=["chat", "anthropic"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def served(backend: str, upstream: FakeUpstream) -> AsyncIterator[Served]:
    provider, name = (Fake, "fake") if backend == "chat" else (NATIVE, "anthropic")
    instance = make_instance(upstream, provider=provider, name=name)
    async with serving(instance, gateway_keys=(Secret("caller"),), max_attempts=1) as gateway:
        yield gateway


@pytest.fixture
async def client(served: Served) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=served.url + "/v1", api_key="caller", max_retries=0
    ) as client:
        yield client


async def ask(client: openai.AsyncOpenAI, stream: bool, **fields: Any) -> Any:
    """Return the response; the client joins the events of a stream."""
    request = {"model": "auto", "input": "Hello!", **fields}
    if not stream:
        return await client.responses.create(**request)
    async with client.responses.stream(**request) as stream_manager:
        return await stream_manager.get_final_response()


async def keep(events: AsyncIterator[Any], seen: list[Any]) -> None:
    async for event in events:
        seen.append(event)


@both
async def test_text_is_returned(client: openai.AsyncOpenAI, stream: bool) -> None:
    response = await ask(client, stream)
    assert response.output_text == Reply().text
    assert (response.object, response.status, response.error) == ("response", "completed", None)
    assert (response.usage.input_tokens, response.usage.output_tokens) == (7, WORDS)
    assert response.usage.total_tokens == 7 + WORDS
    assert response.model.endswith("(Key #1)")
    (item,) = response.output
    assert (item.type, item.role, item.status) == ("message", "assistant", "completed")


async def test_events_arrive_in_order(client: openai.AsyncOpenAI) -> None:
    stream = await client.responses.create(model="auto", input="Hello!", stream=True)
    events = [event async for event in stream]
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * WORDS,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == [*range(len(events))]
    assert "".join(e.delta for e in events if e.type.endswith(".delta")) == Reply().text
    assert events[-1].response.output_text == Reply().text
    assert events[0].response.id == events[-1].response.id


@both
async def test_a_tool_call_works_over_two_turns(
    client: openai.AsyncOpenAI, upstream: FakeUpstream, backend: str, stream: bool
) -> None:
    upstream.script(Reply(tool_calls=True), Reply(text="Nineteen."))
    first = await ask(client, stream, tools=[TOOL], tool_choice="required")
    (call,) = first.output
    assert (call.type, call.call_id, call.name) == ("function_call", "call_1", "get_weather")
    assert (json.loads(call.arguments), call.status) == ({"city": "Paris"}, "completed")
    question = {"role": "user", "content": "Weather?"}
    called = call.to_dict()
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "19 C"}
    second = await ask(client, stream, tools=[TOOL], input=[question, called, result])
    assert second.output_text == "Nineteen."
    one, two = (received.body for received in upstream.requests)
    if backend == "chat":
        assert one["tools"][0]["function"]["parameters"] == SCHEMA
        assert one["tool_choice"] == "required"
        _, call_message, result_message = two["messages"]
        assert call_message["tool_calls"][0]["id"] == "call_1"
        assert result_message == {"role": "tool", "tool_call_id": "call_1", "content": "19 C"}
    else:
        assert one["tools"][0]["input_schema"] == SCHEMA
        assert one["tool_choice"] == {"type": "any"}
        _, call_message, result_message = two["messages"]
        assert (call_message["content"][0]["type"], call_message["content"][0]["id"]) == (
            "tool_use",
            "call_1",
        )
        assert result_message["content"][0]["tool_use_id"] == "call_1"


@both
async def test_an_image_and_instructions_reach_the_backend(
    client: openai.AsyncOpenAI, upstream: FakeUpstream, backend: str, stream: bool
) -> None:
    parts = [
        {"type": "input_text", "text": "What is this?"},
        {"type": "input_image", "image_url": URL, "detail": "low"},
    ]
    await ask(client, stream, instructions="Be brief.", input=[{"role": "user", "content": parts}])
    body = upstream.requests[0].body
    *system, user = body["messages"]
    text, image = user["content"]
    assert text == {"type": "text", "text": "What is this?"}
    if backend == "chat":
        assert system == [{"role": "system", "content": "Be brief."}]
        assert image == {"type": "image_url", "image_url": {"url": URL, "detail": "low"}}
    else:
        source = {"type": "base64", "media_type": "image/png", "data": PNG}
        assert (body["system"], system) == ("Be brief.", [])
        assert image == {"type": "image", "source": source}


@both
async def test_a_schema_reaches_the_backend(
    client: openai.AsyncOpenAI, upstream: FakeUpstream, backend: str, stream: bool
) -> None:
    upstream.default = Reply(text='{"city": "Paris"}')
    response = await ask(client, stream, text={"format": FORM})
    assert json.loads(response.output_text) == {"city": "Paris"}
    body = upstream.requests[0].body
    if backend == "chat":
        wanted = {name: value for name, value in FORM.items() if name != "type"}
        assert body["response_format"] == {"type": "json_schema", "json_schema": wanted}
    else:
        form = {"type": "json_schema", "schema": SCHEMA}
        assert body["output_config"]["format"] == form


@both
@pytest.mark.parametrize(
    ("finish", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")]
)
async def test_an_incomplete_answer_has_its_reason(
    client: openai.AsyncOpenAI, upstream: FakeUpstream, finish: str, reason: str, stream: bool
) -> None:
    upstream.default = Reply(finish=finish)
    response = await client.responses.create(
        model="auto", input="Hello!", max_output_tokens=16, stream=stream
    )
    if stream:
        *_, last = [event async for event in response]
        assert last.type == "response.incomplete"
        response = last.response
    assert (response.status, response.incomplete_details.reason) == ("incomplete", reason)
    assert response.output[0].status == "incomplete"
    assert response.output_text == Reply().text
    assert upstream.requests[0].body["max_tokens"] == 16


async def test_reasoning_is_returned_and_accepted(
    client: openai.AsyncOpenAI, upstream: FakeUpstream
) -> None:
    upstream.default = Reply(reasoning=True)
    response = await ask(client, True, reasoning={"effort": "high"})
    assert [item.type for item in response.output] == ["reasoning", "message"]
    assert response.output[0].content[0].text == "Hm. "
    question = {"role": "user", "content": "And now?"}
    await ask(client, True, input=[*(item.to_dict() for item in response.output), question])
    assert [m["role"] for m in upstream.requests[1].body["messages"]] == ["assistant", "user"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tools[0].type"),
        ({"input": []}, "input"),
        ({"extra_body": {"input": 7}}, "input"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_an_unsupported_field_is_rejected(
    client: openai.AsyncOpenAI,
    upstream: FakeUpstream,
    fields: dict[str, Any],
    param: str,
) -> None:
    request = {"model": "auto", "input": "Hello!", **fields}
    with pytest.raises(openai.BadRequestError) as raised:
        await client.responses.create(**request)
    assert raised.value.param == param
    assert raised.value.body["message"]
    assert raised.value.request_id
    assert upstream.hits() == 0


async def test_defaults_of_unsupported_fields_are_accepted(client: openai.AsyncOpenAI) -> None:
    defaults: dict[str, Any] = {"store": False, "background": False, "truncation": "disabled"}
    response = await ask(client, False, **defaults, metadata={"a": "b"})
    assert (response.status, response.metadata) == ("completed", {"a": "b"})


@both
@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, "BadRequestError"),
        (429, "RateLimitError"),
        (401, "InternalServerError"),
        (500, "InternalServerError"),
    ],
)
async def test_errors_have_the_clients_types(
    client: openai.AsyncOpenAI, upstream: FakeUpstream, status: int, error: str, stream: bool
) -> None:
    upstream.default = Reply(status=status)
    with pytest.raises(getattr(openai, error)):
        await client.responses.create(model="auto", input="Hello!", stream=stream)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(cut_after=3, delay_s=0.01), "connection broke"),
        (Reply(end_after=3, delay_s=0.01), "cut the answer off"),
        (Reply(error_after=3, delay_s=0.01), "Overloaded"),
    ],
    ids=["cut", "end", "error"],
)
async def test_a_broken_stream_raises(
    client: openai.AsyncOpenAI, upstream: FakeUpstream, reply: Reply, words: str
) -> None:
    upstream.default = reply
    seen: list[Any] = []
    stream = await client.responses.create(model="auto", input="Hello!", stream=True)
    with pytest.raises(openai.APIError, match=words):
        await keep(stream, seen)
    texts = [event.delta for event in seen if event.type == "response.output_text.delta"]
    assert "".join(texts) == "Hello from the"
