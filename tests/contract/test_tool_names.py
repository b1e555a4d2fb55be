"""Names of tools that a backend refuses are changed on the way there, and back to callers.

The backends are fakes as strict as the real ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fakes import Fake, make_instance, serving

from nexus_gateway.provider import Provider, ToolNames, WholeSchemas
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.strict import CallingUpstream, tools

LONG = "mcp__a_server_with_a_long_name__" + "and_a_tool_" * 6
SCHEMA = {"type": "object"}
both = pytest.mark.parametrize("stream", [True, False], ids=["stream", "complete"])


class Short(Fake):
    title = "Short"
    adaptations = (ToolNames("[a-zA-Z0-9_-]{1,64}", 64), WholeSchemas())


REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "tools": [{"type": "function", "function": {"name": LONG, "parameters": SCHEMA}}],
        "tool_choice": {"type": "function", "function": {"name": LONG}},
        "messages": [
            {"role": "user", "content": "Hi"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c", "type": "function", "function": {"name": LONG, "arguments": "{}"}}
                ],
            },
            {"role": "tool", "tool_call_id": "c", "content": "x"},
        ],
    },
    "/v1/messages": {
        "max_tokens": 9,
        "tools": [{"name": LONG, "input_schema": SCHEMA}],
        "tool_choice": {"type": "tool", "name": LONG},
        "messages": [
            {"role": "user", "content": "Hi"},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "c", "name": LONG, "input": {}}],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "c", "content": "x"}],
            },
        ],
    },
    "/v1/responses": {
        "tools": [{"type": "function", "name": LONG, "parameters": SCHEMA}],
        "tool_choice": {"type": "function", "name": LONG},
        "input": [
            {"role": "user", "content": "Hi"},
            {"type": "function_call", "call_id": "c", "name": LONG, "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "x"},
        ],
    },
}


def names_in(value: object) -> Iterator[str]:
    """Yield the names of the tools in any dialect's answer."""
    if isinstance(value, list):
        for item in value:
            yield from names_in(item)
    elif isinstance(value, dict):
        if isinstance(name := value.get("name"), str) and name:
            yield name
        yield from names_in(list(value.values()))


def objects(text: str) -> list[Any]:
    if not text.startswith(("data:", "event:", ":")):
        return [json.loads(text)]
    data = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in data if line != "[DONE]"]


@pytest.mark.parametrize("path", REQUESTS)
@both
async def test_a_name_that_is_too_long_reaches_the_caller_as_it_was(
    path: str, stream: bool
) -> None:
    async with CallingUpstream(tools("[a-zA-Z0-9_-]{1,64}")) as upstream:
        upstream.default = Reply(tool_calls=1, finish="tool_calls")
        async with serving(make_instance(upstream, provider=Short)) as served:
            body = {"model": "auto", "stream": stream, **REQUESTS[path]}
            status, text, _ = await served.post(path, body)
    assert (status, upstream.complaints) == (200, [])
    assert {*names_in(objects(text))} == {LONG}
    assert "usage" in text or path == "/v1/chat/completions"


@both
async def test_a_chat_whose_names_fit_passes_as_bytes(stream: bool) -> None:
    chat = json.dumps(REQUESTS["/v1/chat/completions"]).replace(LONG, "short")
    said = b'{"content":"\\u00e9"},"finish_reason":"stop"}]}'  # no JSON encoder would write this
    whole = b'{"id":"x","choices":[{"index":0,"message":' + said
    event = b'data: {"id":"x","choices":[{"index":0,"delta":' + said + b"\n\ndata: [DONE]\n\n"
    async with CallingUpstream() as upstream:
        upstream.default = Reply(body=whole)
        if stream:
            upstream.default = Reply(body=event, content_type="text/event-stream")
        async with serving(make_instance(upstream, provider=Short)) as served:
            _, text, _ = await served.chat({**json.loads(chat), "stream": stream})
    assert said.decode() in text


async def test_a_provider_that_declares_nothing_gets_the_callers_names() -> None:
    async with CallingUpstream() as upstream, serving(make_instance(upstream)) as served:
        await served.chat(REQUESTS["/v1/chat/completions"])
    assert upstream.requests[0].body["tools"] == REQUESTS["/v1/chat/completions"]["tools"]
    assert Provider().tool_names is None
