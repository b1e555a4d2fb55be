"""Conversations that move between dialects and backends, each of which refuses what is not its own.

The backends are fakes as strict as the real ones; the callers are the official clients.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from fakes import HELLO, Fake, make_instance, serving
from official import anthropic, openai
from plugin_points import built_in

from nexus_gateway.provider import Model
from nexus_gateway.routing.instance import Instance
from nexus_gateway.testing.gateway import Served, instance_of
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.strict import (
    LONGEST_CALL_ID,
    SigningUpstream,
    StrictUpstream,
    ThinkingUpstream,
    call_ids,
    known_fields,
    without_fields,
)
from nexus_gateway.testing.upstream import FakeUpstream

TURNS, MOVES = 4, 7
PATH = ("extra_content", "google", "thought_signature")
PLACEHOLDER = "skip_thought_signature_validator"
MESSAGE = ("role", "content", "tool_calls", "tool_call_id")
CACHED = {"cache_control": {"type": "ephemeral"}}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
HINTS = {
    **{"store": False, "metadata": {"a": "b"}, "prompt_cache_key": "k", "service_tier": "auto"},
    **{"frequency_penalty": 0.5, "safety_identifier": "s", "verbosity": "low"},
}
GEMINI_REFUSES = without_fields(*HINTS)
pytestmark = pytest.mark.unmeasured


def instance(name: str, upstream: FakeUpstream) -> Instance:
    return instance_of(built_in(name), upstream.base_url, key="a-key-of-" + name, name=name)


def strict(name: str) -> StrictUpstream:
    """Return a fake of a provider."""
    if name == "gemini":
        fields = known_fields(message=MESSAGE, call=("id", "type", "function", "extra_content"))
        return SigningUpstream(fields, GEMINI_REFUSES, path=PATH, placeholder=PLACEHOLDER)
    if name == "deepseek":
        return ThinkingUpstream(known_fields(message=(*MESSAGE, "reasoning_content")))
    if name == "mistral":
        return StrictUpstream(known_fields(message=MESSAGE), call_ids("[a-zA-Z0-9]{9}"))
    if name in ("groq", "cerebras"):
        fields = known_fields(message=(*MESSAGE, "reasoning"))
        refuses = without_fields("prompt_cache_key", "store", "metadata", "verbosity")
        return StrictUpstream(fields, refuses)
    return StrictUpstream(known_fields(message=MESSAGE), call_ids(".{1,40}"))


NAMES = ("gemini", "deepseek", "mistral", "groq", "cerebras", "openai", "xai")


@pytest.fixture
async def backends(request: pytest.FixtureRequest) -> AsyncIterator[dict[str, StrictUpstream]]:
    """The backend that a case names, or all."""
    named = "name" in request.fixturenames
    names = [request.getfixturevalue("name")] if named else NAMES
    async with AsyncExitStack() as stack:
        yield {name: await stack.enter_async_context(strict(name)) for name in names}


@pytest.fixture
async def served(backends: dict[str, StrictUpstream]) -> AsyncIterator[Served]:
    async with serving(*(instance(name, fake) for name, fake in backends.items())) as gateway:
        yield gateway


def script(fake: FakeUpstream, turn: int) -> int:
    """Let a backend call one tool or two, and at last answer; return the number of calls."""
    calls = 0 if turn == TURNS else 1 + turn % 2
    fake.script(Reply(tool_calls=calls, reasoning=True))
    return calls


class ClaudeCode:
    """Sends Messages, streamed, with thinking, tools and marks for the cache.

    Some clients cut ids that are longer than `longest_id`.
    """

    def __init__(
        self, served: Served, *, thinking: bool = True, longest_id: int | None = None
    ) -> None:
        self._longest_id = longest_id
        self._client = anthropic.AsyncAnthropic(
            base_url=served.url, api_key="caller", max_retries=0
        )
        self._thinking = {"thinking": {"type": "adaptive"}} if thinking else {}
        self._messages: list[dict[str, Any]] = [
            {"role": "user", "content": [{"type": "text", "text": "Weather?", **CACHED}]}
        ]

    async def turn(self, model: str) -> int:
        """Answer the calls of the last turn; return the number of new calls."""
        async with self._client.messages.stream(
            model=model,
            max_tokens=999,
            system=[{"type": "text", "text": "Be short."}, {"type": "text", "text": "!", **CACHED}],
            tools=[{"name": "get_weather", "input_schema": SCHEMA, **CACHED}],
            messages=self._messages,
            **self._thinking,
        ) as stream:
            message = await stream.get_final_message()
        blocks = [block.to_dict() for block in message.content]
        uses = [block for block in blocks if block["type"] == "tool_use"]
        for use in uses:
            assert re.fullmatch("[a-zA-Z0-9_-]+", use["id"])
            use["id"] = use["id"][: self._longest_id]
        results = [
            {"type": "tool_result", "tool_use_id": u["id"], "content": "19 C", **CACHED}
            for u in uses
        ]
        self._messages += [
            {"role": "assistant", "content": blocks},
            {"role": "user", "content": results or "And tomorrow?"},
        ]
        return len(uses)

    async def close(self) -> None:
        await self._client.close()


class Codex:
    """Sends Responses, streamed, without storage.

    Clients differ in what they return of reasoning: `sends` are the fields.
    """

    def __init__(self, served: Served, sends: tuple[str, ...] = ()) -> None:
        self._client = openai.AsyncOpenAI(
            base_url=served.url + "/v1", api_key="caller", max_retries=0
        )
        self._sends = sends
        self._items: list[dict[str, Any]] = [{"role": "user", "content": "Weather?"}]
        included = ["reasoning.encrypted_content"]
        self._state: dict[str, Any] = {"store": False, "include": included}

    async def turn(self, model: str) -> int:
        async with self._client.responses.stream(
            model=model,
            # The client looks for files in `input`, which takes it far longer than all else.
            input="",
            extra_body={"input": self._items},
            instructions="Be short.",
            prompt_cache_key="thread",
            tools=[{"type": "function", "name": "get_weather", "parameters": SCHEMA}],
            **self._state,
        ) as stream:
            response = await stream.get_final_response()
        calls = [item for item in response.output if item.type == "function_call"]
        assert all(len(call.call_id) <= LONGEST_CALL_ID for call in calls)
        self._remember(response)
        self._items += [
            {"type": "function_call_output", "call_id": call.call_id, "output": "19 C"}
            for call in calls
        ] or [{"role": "user", "content": "And tomorrow?"}]
        return len(calls)

    def _remember(self, response: Any) -> None:
        self._items += [self._returned(item.to_dict()) for item in response.output]

    def _returned(self, item: dict[str, Any]) -> dict[str, Any]:
        if item["type"] == "reasoning" and self._sends:
            return {k: v for k, v in item.items() if k in self._sends}
        return {k: v for k, v in item.items() if k != "parsed_arguments"}

    async def close(self) -> None:
        await self._client.close()


class AISDK(Codex):
    """Refers to each item of an answer by its id."""

    def __init__(self, served: Served) -> None:
        super().__init__(served)
        self._state = {"store": True}

    def _remember(self, response: Any) -> None:
        self._items += [{"type": "item_reference", "id": item.id} for item in response.output]


class OpenAIAgents(Codex):
    """Continues the last response, without `store`, which is true."""

    def __init__(self, served: Served) -> None:
        super().__init__(served)
        self._state = {}

    def _remember(self, response: Any) -> None:
        self._items, self._state = [], {"previous_response_id": response.id}


class ChatClient:
    """Sends chats with all fields of the answers, or only with those that the reference has."""

    def __init__(self, served: Served, *, drops: bool = False) -> None:
        self._drops = drops
        self._client = openai.AsyncOpenAI(
            base_url=served.url + "/v1", api_key="caller", max_retries=0
        )
        self._messages: list[dict[str, Any]] = [
            {"role": "user", "content": [{"type": "text", "text": "Weather?", **CACHED}]}
        ]

    async def turn(self, model: str) -> int:
        function = {"name": "get_weather", "parameters": SCHEMA}
        completion = await self._client.chat.completions.create(
            model=model,
            messages=self._messages,
            tools=[{"type": "function", "function": function, **CACHED}],
            **({"extra_body": HINTS} if model in ("gemini", "groq", "cerebras") else {}),
        )
        # Null fields as well.
        message = {"annotations": [], **completion.choices[0].message.model_dump()}
        calls = message["tool_calls"] or []
        if self._drops:
            message = {name: message[name] for name in ("role", "content", "tool_calls")}
            for call in calls:
                call.pop("extra_content", None)
        results = [{"role": "tool", "tool_call_id": c["id"], "content": "19 C"} for c in calls]
        self._messages += [message, *(results or [{"role": "user", "content": "And tomorrow?"}])]
        return len(calls)

    async def close(self) -> None:
        await self._client.close()


CLIENTS = {
    "messages": ClaudeCode,
    "messages-without-thinking": lambda served: ClaudeCode(served, thinking=False),
    "messages-short-ids": lambda served: ClaudeCode(served, longest_id=64),
    "responses": Codex,
    "responses-text-alone": lambda served: Codex(served, ("type", "summary", "content")),
    "responses-encrypted-alone": lambda served: Codex(
        served, ("type", "summary", "encrypted_content")
    ),
    "responses-references": AISDK,
    "responses-previous-id": OpenAIAgents,
    "chat": ChatClient,
    "chat-known-fields-alone": lambda served: ChatClient(served, drops=True),
}
# These return nothing of the reasoning, or of the signatures.
NO_REASONING = ("messages-without-thinking", "chat-known-fields-alone")
NO_SIGNATURE = ("messages-short-ids", "responses-text-alone", "chat-known-fields-alone")
# Fakes that want back neither reasoning nor signatures: a client of each dialect suffices.
PLAIN = ("mistral", "groq", "cerebras", "openai", "xai")
STRICT_CASES = [
    (client, name)
    for name in NAMES
    for client in CLIENTS
    if name not in PLAIN or client in ("messages", "responses", "chat")
]


@pytest.mark.proves("F62")
@pytest.mark.parametrize(("client", "name"), STRICT_CASES)
async def test_a_strict_backend_accepts_a_whole_conversation(
    served: Served, backends: dict[str, StrictUpstream], client: str, name: str
) -> None:
    fake, talk = backends[name], CLIENTS[client](served)
    for turn in range(1, TURNS + 1):
        calls = script(fake, turn)
        assert await talk.turn(name) == calls
    await talk.close()
    assert (fake.complaints, fake.hits()) == ([], TURNS)
    loses = NO_SIGNATURE if isinstance(fake, SigningUpstream) else NO_REASONING
    kept = client not in loses or not isinstance(fake, SigningUpstream | ThinkingUpstream)
    assert bool(fake.lost) != kept


@pytest.mark.proves("F62")
@pytest.mark.parametrize("client", CLIENTS)
async def test_a_conversation_moves_between_strict_backends(
    served: Served, backends: dict[str, StrictUpstream], client: str
) -> None:
    talk = CLIENTS[client](served)
    for turn in range(1, MOVES + 1):
        name = NAMES[turn * 3 % len(NAMES)]
        calls = script(backends[name], turn)
        assert await talk.turn(name) == calls
    await talk.close()
    assert [fake.complaints for fake in backends.values()] == [[]] * len(backends)
    assert [fake.hits() for fake in backends.values()] == [1] * len(backends)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "full"])
async def test_a_chat_client_gets_the_signatures_as_they_are(
    served: Served, backends: dict[str, StrictUpstream], stream: bool
) -> None:
    backends["gemini"].script(Reply(tool_calls=1))
    _, text, _ = await served.chat({**HELLO, "model": "gemini", "stream": stream})
    assert '"google":{"thought_signature":"call_1-1+/Ab0=' in text.replace(" ", "")


CONVERSATION: dict[str, Any] = {
    "max_tokens": 9,
    "system": [{"type": "text", "text": "Be short.", **CACHED}],
    "tools": [{"name": "f", "input_schema": SCHEMA, **CACHED}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "Hi", **CACHED}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm", "signature": "signed elsewhere"},
                {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": "19 C", **CACHED}
            ],
        },
    ],
}


async def sent(upstream: FakeUpstream, one: Instance, path: str, body: Any) -> dict[str, Any]:
    async with serving(one) as served:
        status, text, _ = await served.post(path, body)
        assert status == 200, text
    return upstream.requests[-1].body


async def test_marks_for_the_cache_reach_a_backend_that_takes_them(upstream: FakeUpstream) -> None:
    body = await sent(upstream, instance("openrouter", upstream), "/v1/messages", CONVERSATION)
    system, user, assistant, result = body["messages"]
    for content in (system["content"], user["content"], result["content"]):
        assert [part["cache_control"] for part in content] == [CACHED["cache_control"]]
    assert body["tools"][0]["cache_control"] == CACHED["cache_control"]
    assert assistant["reasoning"] == "Hm"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_they_reach_no_other(upstream: FakeUpstream, path: str) -> None:
    chat = {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi", **CACHED}]}]}
    body = CONVERSATION if path == "/v1/messages" else chat
    got = await sent(upstream, instance("groq", upstream), path, body)
    assert "cache_control" not in json.dumps(got)
    assert {"role": "user", "content": "Hi"} in got["messages"]


async def test_a_backend_without_adaptations_gets_what_openai_knows(upstream: FakeUpstream) -> None:
    """Of another dialect; but a chat is sent as its caller wrote it."""
    got = await sent(upstream, make_instance(upstream), "/v1/messages", CONVERSATION)
    system, user, assistant, result = got["messages"]
    assert system == {"role": "system", "content": "Be short."}
    assert user == {"role": "user", "content": "Hi"}
    assert assistant.keys() == {"role", "content", "tool_calls"}
    assert result == {"role": "tool", "tool_call_id": "toolu_1", "content": "19 C"}
    assert got["tools"][0].keys() == {"type", "function"}
    odd = {"role": "assistant", "content": "x", "reasoning_content": "y", "unknown": None}
    chat = {"model": "fake-large", "stream": False, "messages": [odd, *HELLO["messages"]]}
    await sent(upstream, make_instance(upstream), "/v1/chat/completions", chat)
    assert upstream.requests[-1].body == chat


class Small(Fake):
    models = (Model("fake-large", max_output=8192), Model("fake-small"))


@pytest.mark.parametrize(
    ("model", "wanted", "limit"),
    [("fake-large", 32_000, 8192), ("fake-large", 100, 100), ("fake-small", 32_000, 32_000)],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
async def test_an_answer_is_limited_to_what_the_model_can_give(
    upstream: FakeUpstream, path: str, model: str, wanted: int, limit: int
) -> None:
    name = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    text = {"input": "Hi"} if path == "/v1/responses" else HELLO
    body = {**text, "model": model, name: wanted}
    got = await sent(upstream, make_instance(upstream, provider=Small), path, body)
    assert got["max_tokens"] == limit


async def test_ids_and_reasoning_of_the_gateway_do_not_reach_their_native_backends(
    backends: dict[str, StrictUpstream], served: Served, upstream: FakeUpstream
) -> None:
    """Signed by one model, continued by Anthropic itself."""
    talk = ClaudeCode(served)
    script(backends["gemini"], 1)
    await talk.turn("gemini")
    async with serving(instance("anthropic", upstream)) as native:
        talk._client.base_url = native.url
        await talk.turn("anthropic")
    await talk.close()
    _, assistant, user = upstream.requests[-1].body["messages"]
    uses = [block["id"] for block in assistant["content"] if block["type"] == "tool_use"]
    assert uses == ["call_1-1", "call_2-1"]
    assert [result["tool_use_id"] for result in user["content"]] == uses
    assert [block["type"] for block in assistant["content"]] == ["tool_use", "tool_use"]
