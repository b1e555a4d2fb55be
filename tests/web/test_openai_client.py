"""OpenAI's official client; only its base URL is changed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from fakes import Served, make_instance, serving
from official import openai

from nexus_gateway.secret import Secret
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream

both_ways = pytest.mark.usefixtures("each_way")

HELLO = [{"role": "user", "content": "Hello!"}]
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}


@pytest.fixture
async def served(upstream: FakeUpstream) -> AsyncIterator[Served]:
    async with serving(make_instance(upstream), gateway_keys=(Secret("caller"),)) as gateway:
        yield gateway


@pytest.fixture
async def client(served: Served) -> AsyncIterator[openai.AsyncOpenAI]:
    url = served.url + "/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="caller", max_retries=0) as client:
        yield client


@both_ways
async def test_an_answer_is_returned_and_streamed(client: openai.AsyncOpenAI) -> None:
    completion = await client.chat.completions.create(model="auto", messages=HELLO)
    assert completion.choices[0].message.content == Reply().text
    assert completion.model == "Fake (Key #1)"
    assert completion.usage.completion_tokens
    stream = await client.chat.completions.create(model="fake", messages=HELLO, stream=True)
    parts = [chunk async for chunk in stream]
    assert "".join(part.choices[0].delta.content or "" for part in parts) == Reply().text
    assert parts[-1].choices[0].finish_reason == "stop"


@both_ways
async def test_the_usage_chunk_comes_last(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="auto", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    *_, last = [chunk async for chunk in stream]
    assert last.choices == []
    assert last.usage.prompt_tokens == 7


@both_ways
async def test_tool_calls_are_returned_and_streamed(
    client: openai.AsyncOpenAI, upstream: FakeUpstream
) -> None:
    upstream.default = Reply(tool_calls=True)
    completion = await client.chat.completions.create(model="auto", messages=HELLO, tools=[TOOL])
    (call,) = completion.choices[0].message.tool_calls
    assert (call.id, call.function.name) == ("call_1", "get_weather")
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    assert completion.choices[0].finish_reason == "tool_calls"
    stream = await client.chat.completions.create(
        model="auto", messages=HELLO, tools=[TOOL], stream=True
    )
    calls = [
        call
        async for chunk in stream
        for choice in chunk.choices
        for call in choice.delta.tool_calls or []
    ]
    assert calls[0].function.name == "get_weather"
    assert json.loads("".join(c.function.arguments or "" for c in calls)) == {"city": "Paris"}
    assert upstream.requests[0].body["tools"] == [TOOL]


async def test_models_are_listed_and_retrieved(client: openai.AsyncOpenAI) -> None:
    listed = [model.id async for model in await client.models.list()]
    assert "fake-large" in listed
    assert (await client.models.retrieve("fake/vendor/model")).id == "fake/vendor/model"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("unknown")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(status=400), "BadRequestError"),
        (Reply(status=422), "UnprocessableEntityError"),
        (Reply(status=404), "NotFoundError"),
        (Reply(status=429, headers={"Retry-After": "1"}), "RateLimitError"),
        (Reply(status=401), "InternalServerError"),
        (Reply(status=500), "InternalServerError"),
    ],
)
async def test_errors_have_the_clients_types(
    client: openai.AsyncOpenAI,
    upstream: FakeUpstream,
    reply: Reply,
    error: str,
    stream: bool,
) -> None:
    upstream.default = reply
    with pytest.raises(getattr(openai, error)) as raised:
        await client.chat.completions.create(model="fake/x", messages=HELLO, stream=stream)
    assert raised.value.request_id
    assert raised.value.body["message"]


async def test_a_wrong_key_is_an_authentication_error(served: Served) -> None:
    async with openai.AsyncOpenAI(
        base_url=served.url + "/v1", api_key="no", max_retries=0
    ) as client:
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()


@both_ways
@pytest.mark.proves("I-31")
async def test_a_broken_stream_raises(client: openai.AsyncOpenAI, upstream: FakeUpstream) -> None:
    upstream.default = Reply(cut_after=3, delay_s=0.01)
    stream = await client.chat.completions.create(model="auto", messages=HELLO, stream=True)
    with pytest.raises(openai.APIError, match="connection broke"):
        async for _ in stream:
            pass


@pytest.mark.proves("I-22")
async def test_a_client_retries_after_an_outage_and_not_if_that_is_pointless(
    served: Served, upstream: FakeUpstream
) -> None:
    upstream.script(*[Reply(status=500)] * 6)  # MAX_ATTEMPTS
    async with openai.AsyncOpenAI(
        base_url=served.url + "/v1", api_key="caller", max_retries=5
    ) as client:
        await client.chat.completions.create(model="auto", messages=HELLO)
        assert upstream.hits() == 6 + 1
        upstream.default = Reply(status=401)
        with pytest.raises(openai.InternalServerError):
            await client.chat.completions.create(model="auto", messages=HELLO)
    assert upstream.hits() == 7 + 1
