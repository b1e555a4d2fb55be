"""One conversation, told by two clients before two kinds of backend: always the same."""

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
class Said:
    """What an answer says, in neither dialect's words."""

    text: str
    calls: list[tuple[str, str, Any]]
    stop: str
    tokens: tuple[int, int]


class OpenAITeller:
    """The conversation in the words of OpenAI's chat completions."""

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
        made = {"id": id, "type": "function", "function": function}
        assistant = {"role": "assistant", "content": BEFORE, "tool_calls": [made]}
        return [*self.first(), assistant, {"role": "tool", "tool_call_id": id, "content": RESULT}]

    async def ask(self, messages: list[Any], stream: bool) -> Said:
        function = {"name": NAME, "description": "Tells it.", "parameters": SCHEMA}
        tools: Any = [{"type": "function", "function": function}]
        asked: dict[str, Any] = {"model": "auto", "max_tokens": 99, "tools": tools}
        create = self.client.chat.completions
        if stream:
            asked["stream_options"] = {"include_usage": True}
            async with create.stream(**asked, messages=messages) as told:
                async for _ in told:
                    pass
                # The final completion itself is not to be had where an answer was cut short.
                whole: Any = told.current_completion_snapshot
        else:
            whole = await create.create(**asked, messages=messages)
        (choice,) = whole.choices
        made = choice.message.tool_calls or []
        calls = [(c.id, c.function.name, json.loads(c.function.arguments)) for c in made]
        used = (whole.usage.prompt_tokens, whole.usage.completion_tokens)
        return Said(choice.message.content or "", calls, self.stops[choice.finish_reason], used)


class AnthropicTeller:
    """The conversation in the words of Anthropic's Messages."""

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

    async def ask(self, messages: list[Any], stream: bool) -> Said:
        tools: Any = [{"name": NAME, "description": "Tells it.", "input_schema": SCHEMA}]
        asked: dict[str, Any] = {"model": "auto", "max_tokens": 99, "tools": tools}
        asked |= {"system": SYSTEM, "messages": messages}
        if stream:
            async with self.client.messages.stream(**asked) as told:
                whole: Any = await told.get_final_message()
        else:
            whole = await self.client.messages.create(**asked)
        text = "".join(b.text for b in whole.content if b.type == "text")
        calls = [(b.id, b.name, b.input) for b in whole.content if b.type == "tool_use"]
        used = (whole.usage.input_tokens, whole.usage.output_tokens)
        return Said(text, calls, self.stops[whole.stop_reason], used)


def read_chat(body: dict[str, Any]) -> list[Any]:
    """Read what an OpenAI-compatible upstream got."""
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
    """Read what an Anthropic upstream got."""
    read: list[Any] = [body["max_tokens"]]
    read += [(t["name"], t["input_schema"]) for t in body["tools"]]
    read.append(("system", body["system"]))
    for message in body["messages"]:
        for block in message["content"]:
            if block["type"] == "tool_use":
                read.append(("call", block["id"], block["name"], block["input"]))
            elif block["type"] == "tool_result":
                told = block["content"]
                read.append(("result", told if isinstance(told, str) else told[0]["text"]))
            elif block["type"] == "image":
                source = block["source"]
                url = f"data:{source['media_type']};base64,{source['data']}"
                read.append((message["role"], url))
            else:
                read.append((message["role"], block["text"]))
    return read


READERS = {"openai": read_chat, "anthropic": read_messages}
TELLERS = {"openai": OpenAITeller, "anthropic": AnthropicTeller}
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
async def teller(
    request: pytest.FixtureRequest, served: Served
) -> AsyncIterator[OpenAITeller | AnthropicTeller]:
    made = TELLERS[request.param](served.url)
    async with made.client:
        yield made


ways = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])


@ways
async def test_a_conversation_is_the_same_whichever_way_it_goes(
    teller: OpenAITeller | AnthropicTeller, backend: str, upstream: FakeUpstream, stream: bool
) -> None:
    upstream.script(Reply(tool_calls=True), Reply(text=FINAL))
    asked = await teller.ask(teller.first(), stream)
    assert asked == Said("", [("call_1", NAME, {"city": "Paris"})], "call", (7, 4))
    answered = await teller.ask(teller.second(asked.calls[0]), stream)
    assert answered == Said(FINAL, [], "end", (7, 6))
    got = [READERS[backend](received.body) for received in upstream.requests]
    assert got == [FIRST, SECOND]


@ways
@pytest.mark.parametrize(("finish", "stop"), [("length", "cut"), ("content_filter", "refusal")])
async def test_an_end_is_the_same_whichever_way_it_goes(
    teller: OpenAITeller | AnthropicTeller,
    upstream: FakeUpstream,
    finish: str,
    stop: str,
    stream: bool,
) -> None:
    upstream.default = Reply(text=FINAL, finish=finish)
    assert await teller.ask(teller.first(), stream) == Said(FINAL, [], stop, (7, 6))
