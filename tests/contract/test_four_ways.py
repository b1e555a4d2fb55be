"""One conversation with two clients and two kinds of backends: always the same."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import pytest
from fakes import Fake, Served, make_instance, serving
from official import anthropic, openai

from nexus_gateway.provider import Provider
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream

NATIVE: type[Provider] = metadata.entry_points(group="nexus_gateway.providers")["anthropic"].load()
SYSTEM = "You describe weather, with care."
QUESTION = "How is the weather in this city? 東京"
BEFORE = "I look."
RESULT = "19 °C"
FINAL = "It is nineteen degrees in Paris."
NAME = "get_weather"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
PNG = "iVBORw0KGgo="
URL = f"data:image/png;base64,{PNG}"


@dataclass(frozen=True)
class Response:
    """A response, independent of the dialect."""

    text: str
    calls: list[tuple[str, str, Any]]
    stop: str
    tokens: tuple[int, int]


class OpenAICaller:
    """The conversation in OpenAI's chat completions."""

    stops = {"stop": "end", "length": "cut", "tool_calls": "call", "content_filter": "refusal"}

    def __init__(self, url: str) -> None:
        self.client = openai.AsyncOpenAI(base_url=url + "/v1", api_key="x", max_retries=0)

    def first(self) -> list[Any]:
        image = {"type": "image_url", "image_url": {"url": URL}}
        user = {"role": "user", "content": [{"type": "text", "text": QUESTION}, image]}
        return [{"role": "system", "content": SYSTEM}, user]

    def second(self, call: tuple[str, str, Any]) -> list[Any]:
        id, name, arguments = call
        function = {"name": name, "arguments": json.dumps(arguments)}
        tool_call = {"id": id, "type": "function", "function": function}
        assistant = {"role": "assistant", "content": BEFORE, "tool_calls": [tool_call]}
        return [*self.first(), assistant, {"role": "tool", "tool_call_id": id, "content": RESULT}]

    async def ask(self, messages: list[Any], stream: bool) -> Response:
        function = {"name": NAME, "description": "Returns the weather.", "parameters": SCHEMA}
        tools: Any = [{"type": "function", "function": function}]
        request: dict[str, Any] = {"model": "auto", "max_tokens": 99, "tools": tools}
        create = self.client.chat.completions
        if stream:
            request["stream_options"] = {"include_usage": True}
            async with create.stream(**request, messages=messages) as events:
                async for _ in events:
                    pass
                # There is no final completion if a response was cut short.
                completion: Any = events.current_completion_snapshot
        else:
            completion = await create.create(**request, messages=messages)
        (choice,) = completion.choices
        tool_calls = choice.message.tool_calls or []
        calls = [(c.id, c.function.name, json.loads(c.function.arguments)) for c in tool_calls]
        used = (completion.usage.prompt_tokens, completion.usage.completion_tokens)
        return Response(choice.message.content or "", calls, self.stops[choice.finish_reason], used)


class AnthropicCaller:
    """The conversation in Anthropic's Messages."""

    stops = {"end_turn": "end", "max_tokens": "cut", "tool_use": "call", "refusal": "refusal"}

    def __init__(self, url: str) -> None:
        self.client = anthropic.AsyncAnthropic(base_url=url, api_key="x", max_retries=0)

    def first(self) -> list[Any]:
        source = {"type": "base64", "media_type": "image/png", "data": PNG}
        image = {"type": "image", "source": source}
        return [{"role": "user", "content": [{"type": "text", "text": QUESTION}, image]}]

    def second(self, call: tuple[str, str, Any]) -> list[Any]:
        id, name, input = call
        used = {"type": "tool_use", "id": id, "name": name, "input": input}
        result = {"type": "tool_result", "tool_use_id": id, "content": RESULT}
        assistant = {"role": "assistant", "content": [{"type": "text", "text": BEFORE}, used]}
        return [*self.first(), assistant, {"role": "user", "content": [result]}]

    async def ask(self, messages: list[Any], stream: bool) -> Response:
        tools: Any = [{"name": NAME, "description": "Returns the weather.", "input_schema": SCHEMA}]
        request: dict[str, Any] = {"model": "auto", "max_tokens": 99, "tools": tools}
        request |= {"system": SYSTEM, "messages": messages}
        if stream:
            async with self.client.messages.stream(**request) as events:
                message: Any = await events.get_final_message()
        else:
            message = await self.client.messages.create(**request)
        text = "".join(b.text for b in message.content if b.type == "text")
        calls = [(b.id, b.name, b.input) for b in message.content if b.type == "tool_use"]
        used = (message.usage.input_tokens, message.usage.output_tokens)
        return Response(text, calls, self.stops[message.stop_reason], used)


def read_chat(body: dict[str, Any]) -> list[Any]:
    """Normalize the body that an OpenAI-compatible upstream received."""
    read: list[Any] = [body["max_tokens"]]
    read += [(t["function"]["name"], t["function"]["parameters"]) for t in body["tools"]]
    for message in body["messages"]:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        kind = "result" if message["role"] == "tool" else message["role"]
        for part in parts or []:
            read.append((kind, part.get("text") or part["image_url"]["url"]))
        for call in message.get("tool_calls") or []:
            function = call["function"]
            read.append(("call", call["id"], function["name"], json.loads(function["arguments"])))
    return read


def read_messages(body: dict[str, Any]) -> list[Any]:
    """Normalize the body that an Anthropic upstream received."""
    read: list[Any] = [body["max_tokens"]]
    read += [(t["name"], t["input_schema"]) for t in body["tools"]]
    read.append(("system", body["system"]))
    for message in body["messages"]:
        for block in message["content"]:
            if block["type"] == "tool_use":
                read.append(("call", block["id"], block["name"], block["input"]))
            elif block["type"] == "tool_result":
                result = block["content"]
                read.append(("result", result if isinstance(result, str) else result[0]["text"]))
            elif block["type"] == "image":
                source = block["source"]
                url = f"data:{source['media_type']};base64,{source['data']}"
                read.append((message["role"], url))
            else:
                read.append((message["role"], block["text"]))
    return read


READERS = {"openai": read_chat, "anthropic": read_messages}
CALLERS = {"openai": OpenAICaller, "anthropic": AnthropicCaller}
FIRST = [
    99,
    (NAME, SCHEMA),
    ("system", SYSTEM),
    ("user", QUESTION),
    ("user", URL),
]
SECOND = [
    *FIRST,
    ("assistant", BEFORE),
    ("call", "call_1", NAME, {"city": "Paris"}),
    ("result", RESULT),
]


@pytest.fixture(params=["openai", "anthropic"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def served(backend: str, upstream: FakeUpstream) -> AsyncIterator[Served]:
    provider = Fake if backend == "openai" else NATIVE
    async with serving(make_instance(upstream, provider=provider, name=backend)) as gateway:
        yield gateway


@pytest.fixture(params=["openai", "anthropic"])
async def caller(
    request: pytest.FixtureRequest, served: Served
) -> AsyncIterator[OpenAICaller | AnthropicCaller]:
    one = CALLERS[request.param](served.url)
    async with one.client:
        yield one


both = pytest.mark.parametrize("stream", [True, False], ids=["stream", "no stream"])


@both
async def test_a_conversation_is_the_same_for_all_clients_and_backends(
    caller: OpenAICaller | AnthropicCaller, backend: str, upstream: FakeUpstream, stream: bool
) -> None:
    upstream.script(Reply(tool_calls=True), Reply(text=FINAL))
    first = await caller.ask(caller.first(), stream)
    assert first == Response("", [("call_1", NAME, {"city": "Paris"})], "call", (7, 4))
    second = await caller.ask(caller.second(first.calls[0]), stream)
    assert second == Response(FINAL, [], "end", (7, 6))
    got = [READERS[backend](received.body) for received in upstream.requests]
    assert got == [FIRST, SECOND]


@both
@pytest.mark.parametrize(("finish", "stop"), [("length", "cut"), ("content_filter", "refusal")])
async def test_a_stop_reason_is_the_same_for_all_clients_and_backends(
    caller: OpenAICaller | AnthropicCaller,
    upstream: FakeUpstream,
    finish: str,
    stop: str,
    stream: bool,
) -> None:
    upstream.default = Reply(text=FINAL, finish=finish)
    assert await caller.ask(caller.first(), stream) == Response(FINAL, [], stop, (7, 6))
