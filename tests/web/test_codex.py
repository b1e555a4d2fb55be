"""Requests as Codex sends them, to backends that answer chats, Messages and Responses."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
from fakes import Fake, Served, make_instance, serving
from official import openai
from plugin_points import built_in
from responses_dialect import official_event

from nexus_gateway.provider import Provider
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.strict import StrictUpstream, system_first
from nexus_gateway.testing.upstream import FakeUpstream
from nexus_gateway.wire import sse

PROVIDERS: dict[str, Callable[[], type[Provider]]] = {
    "chat": lambda: Fake,
    "anthropic": lambda: built_in("anthropic"),
    "openai": lambda: built_in("openai"),
}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
GRAMMAR = {"type": "grammar", "syntax": "lark", "definition": "start: /.+/"}
# Called as the fake upstream calls its one tool, so that the answer has a call of it.
CUSTOM = {"type": "custom", "name": "get_weather", "description": "Run.", "format": GRAMMAR}
FUNCTION = {"type": "function", "name": "get_weather", "parameters": SCHEMA, "strict": False}
DEMO = {"type": "namespace", "name": "mcp__demo__", "description": "Demo", "tools": [FUNCTION]}
WEB = {"type": "web_search", "external_web_access": True}
SEARCH = {"type": "tool_search", "execution": "client", "parameters": SCHEMA}
QUESTION = {
    "type": "message",
    "role": "user",
    "content": [{"type": "input_text", "text": "Weather?"}],
}
RULES = {**QUESTION, "role": "developer"}
# What each of its turns has besides its input and tools.
TURN: dict[str, Any] = {
    "instructions": "Be Codex.",
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"effort": "medium", "summary": "auto", "context": "all_turns"},
    "store": False,
    "stream": True,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "7f0c",
    "text": {"verbosity": "low"},
    "client_metadata": {"session": "7f0c"},
    "truncation": "auto",
    "context_management": [{"type": "compaction", "compact_threshold": 200_000}],
    "max_tool_calls": 9,
}


def lite(*tools: dict[str, Any]) -> dict[str, Any]:
    """Return the item with all tools, which Codex sends with current models."""
    plain = {"type": "namespace", "name": "functions", "description": "", "tools": list(tools)}
    return {"type": "additional_tools", "role": "developer", "tools": [plain, DEMO, WEB, SEARCH]}


def declared(tool: dict[str, Any], way: str) -> dict[str, Any]:
    items = [RULES, QUESTION]
    if way == "items":
        return {**TURN, "instructions": "", "input": [lite(tool), *items]}
    return {**TURN, "input": items, "tools": [tool, DEMO, WEB, SEARCH]}


@pytest.fixture(params=["chat", "anthropic"])
async def served(request: pytest.FixtureRequest, upstream: FakeUpstream) -> AsyncIterator[Served]:
    name = str(request.param)
    instance = make_instance(upstream, provider=PROVIDERS[name](), name=name)
    async with serving(instance, max_attempts=1) as gateway:
        yield gateway


async def post(served: Served, body: dict[str, Any]) -> tuple[int, list[dict[str, Any]]]:
    """Return the status, and the events or the one object of the answer."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{served.url}/v1/responses", json={"model": "auto", **body}) as response,
    ):
        data = await response.read()
    if response.content_type == "application/json":
        return response.status, [json.loads(data)]
    return response.status, [json.loads(sse.parse_event(e).data) for e in sse.split(data)]


def kinds(events: list[dict[str, Any]]) -> list[str]:
    """Return the types of events, each once."""
    return list(dict.fromkeys(event["type"].removeprefix("response.") for event in events))


@pytest.mark.parametrize("way", ["tools", "items"])
async def test_a_custom_tool_is_called_and_answered(
    served: Served, upstream: FakeUpstream, way: str
) -> None:
    upstream.script(Reply(tool_calls=1, reasoning=True), Reply(text="Done."))
    body = declared(CUSTOM, way)
    status, events = await post(served, body)
    assert status == 200
    for event in events:
        official_event().validate_python(event)
    calls = ["output_item.added", "custom_tool_call_input.delta", "custom_tool_call_input.done"]
    assert [kind for kind in kinds(events) if kind in calls] == calls
    reasoning, call = events[-1]["response"]["output"]
    assert reasoning["summary"] == [{"type": "summary_text", "text": "Hm. "}]
    assert (call["type"], call["name"], call["input"]) == (
        "custom_tool_call",
        "get_weather",
        "Paris",
    )
    assert "namespace" not in call
    output = {"type": "custom_tool_call_output", "call_id": call["call_id"], "output": "19 C"}
    status, events = await post(
        served, {**body, "input": [*body["input"], *(reasoning, call), output]}
    )
    assert (status, events[-1]["response"]["status"]) == (200, "completed")
    first, second = (received.body for received in upstream.requests)
    names = {(tool.get("function") or tool)["name"] for tool in first["tools"]}
    assert names == {"get_weather", "mcp__demo__get_weather", "tool_search"}
    *_, turn, result = second["messages"]
    assert "Paris" in json.dumps(turn)
    assert "19 C" in json.dumps(result)


@pytest.mark.parametrize("backend", ["chat", "cerebras", "fireworks"])
@pytest.mark.parametrize("stream", [True, False])
async def test_rules_between_turns_suit_any_template(backend: str, stream: bool) -> None:
    provider = Fake if backend == "chat" else built_in(backend)
    answer = {"type": "message", "role": "assistant", "content": "Hm."}
    call = {"type": "function_call", "call_id": "c", "name": "get_weather", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c", "output": "19 C"}
    late = {**RULES, "role": "system", "content": "Late."}
    items = [lite(FUNCTION), RULES, QUESTION, answer, RULES, QUESTION, call, late, output]
    async with StrictUpstream(system_first) as strict:
        instance = make_instance(strict, provider=provider, name=backend)
        async with serving(instance, max_attempts=1) as served:
            status, _ = await post(served, {**TURN, "input": items, "stream": stream})
    assert (status, strict.complaints) == (200, [])
    first, *others = strict.requests[0].body["messages"]
    assert first == {"role": "system", "content": "Be Codex.\n\nWeather?\n\nWeather?\n\nLate."}
    assert [m["role"] for m in others] == ["user", "assistant", "user", "assistant", "tool"]


async def test_a_full_answer_has_the_call_too(served: Served, upstream: FakeUpstream) -> None:
    upstream.default = Reply(tool_calls=1)
    status, (answer,) = await post(served, {**declared(CUSTOM, "items"), "stream": False})
    assert (status, answer["output"][0]["type"]) == (200, "custom_tool_call")
    status, (answer,) = await post(served, {**declared(FUNCTION, "tools"), "stream": False})
    assert (status, answer["output"][0]["type"]) == (200, "function_call")


@pytest.mark.parametrize("choice", ["required", {"type": "web_search"}])
async def test_a_forced_search_is_refused(
    served: Served, upstream: FakeUpstream, choice: object
) -> None:
    body = {**TURN, "input": [QUESTION], "tools": [WEB], "tool_choice": choice}
    status, (answer,) = await post(served, body)
    assert (status, answer["error"]["code"]) == (400, "unsupported_parameter")
    assert upstream.hits() == 0


@pytest.mark.parametrize("backend", list(PROVIDERS))
@pytest.mark.parametrize(
    "reply",
    [Reply(cut_after=3, delay_s=0.01), Reply(end_after=3), Reply(error_after=3, delay_s=0.01)],
    ids=["cut", "end", "error"],
)
async def test_a_broken_stream_has_failed(
    upstream: FakeUpstream, backend: str, reply: Reply
) -> None:
    upstream.default = reply
    instance = make_instance(upstream, provider=PROVIDERS[backend](), name=backend)
    async with serving(instance, max_attempts=1) as served:
        _, events = await post(served, {"input": "Hi", "stream": True})
    assert kinds(events)[-2:] == ["failed", "error"]
    numbers = [event["sequence_number"] for event in events]
    assert numbers == list(range(len(events)))
    failed, error = events[-2]["response"], events[-1]["error"]
    assert (failed["id"], failed["status"]) == (events[0]["response"]["id"], "failed")
    assert failed["error"]["message"] == error["message"]
    texts = [event["delta"] for event in events if event["type"].endswith("output_text.delta")]
    assert "".join(texts) == "Hello from the"


@pytest.mark.parametrize("backend", list(PROVIDERS))
async def test_an_answer_that_is_refused_inside_is_asked_for_again(
    upstream: FakeUpstream, backend: str
) -> None:
    upstream.script(Reply(error_after=0))
    instances = [
        make_instance(upstream, number, provider=PROVIDERS[backend](), name=backend)
        for number in (1, 2)
    ]
    async with serving(*instances) as served:
        _, events = await post(served, {"input": "Hi", "stream": True})
    assert (upstream.hits(), kinds(events)[-1]) == (2, "completed")


# OpenAI itself.


@pytest.fixture
async def openai_alone(upstream: FakeUpstream) -> AsyncIterator[Served]:
    async with serving(
        make_instance(upstream, provider=built_in("openai"), name="openai")
    ) as served:
        yield served


@pytest.mark.parametrize("stream", [True, False])
async def test_openai_gets_the_request_as_it_is(
    openai_alone: Served, upstream: FakeUpstream, stream: bool
) -> None:
    stored = {"store": True, "background": False}
    body = {**declared(CUSTOM, "items"), **stored, "tool_choice": "required", "stream": stream}
    status, answer = await post(openai_alone, body)
    assert (status, kinds(answer)[-1] if stream else answer[0]["status"]) == (200, "completed")
    (received,) = upstream.requests
    assert received.path == "/v1/responses"
    assert received.body == {"model": built_in("openai").default_model, **body}


async def test_other_dialects_go_to_openais_chats(
    openai_alone: Served, upstream: FakeUpstream
) -> None:
    async with openai.AsyncOpenAI(base_url=f"{openai_alone.url}/v1", api_key="x") as client:
        await client.chat.completions.create(
            model="auto", messages=[{"role": "user", "content": "Hi"}]
        )
        await client.responses.create(model="auto", input="Hi")
    paths = [received.path for received in upstream.requests]
    assert paths == ["/v1/chat/completions", "/v1/responses"]


async def test_what_only_openai_can_do_goes_only_there(upstream: FakeUpstream) -> None:
    """Everything else may go to any instance, and from OpenAI's to one that needs a chat."""
    native = make_instance(upstream, 1, provider=built_in("openai"), name="openai")
    async with serving(make_instance(upstream, 2), native) as served:
        body = {"input": [QUESTION], "tools": [WEB], "stream": False}
        for _ in range(4):
            status, _ = await post(served, {**body, "tool_choice": {"type": "web_search"}})
            assert status == 200
        assert {received.path for received in upstream.requests} == {"/v1/responses"}
        upstream.defaults[native.account.key.reveal()] = Reply(status=500)
        for _ in range(4):
            status, (answer,) = await post(served, body)
            assert (status, answer["output"][0]["type"]) == (200, "message")
        assert {received.path for received in upstream.requests[4:]} >= {"/v1/chat/completions"}


async def test_the_items_of_a_chat_are_sent_on_to_openai(
    openai_alone: Served, upstream: FakeUpstream
) -> None:
    """A conversation may move from one backend to another; OpenAI checks the kinds of ids."""
    chat = make_instance(upstream)
    upstream.script(Reply(tool_calls=1, reasoning=True))
    body = {**declared(CUSTOM, "items"), "stream": False}
    async with serving(chat) as served:
        _, (answer,) = await post(served, body)
    reasoning, call = answer["output"]
    output = {"type": "custom_tool_call_output", "call_id": call["call_id"], "output": "19 C"}
    await post(openai_alone, {**body, "input": [*body["input"], reasoning, call, output]})
    assert upstream.requests[-1].body["input"] == [*body["input"], call, output]
    assert call["id"].startswith("ctc_")


@pytest.mark.parametrize("response_model", ["instance", "upstream"])
async def test_an_answer_of_openai_names_its_instance_if_wanted(
    upstream: FakeUpstream, response_model: str
) -> None:
    instance = make_instance(upstream, provider=built_in("openai"), name="openai")
    async with serving(instance, response_model=response_model) as served:
        _, (answer,) = await post(served, {"input": "Hi"})
        _, events = await post(served, {"input": "Hi", "stream": True})
    named = instance.name if response_model == "instance" else "fake-model"
    assert (answer["model"], events[-1]["response"]["model"]) == (named, "fake-model")
