"""What official clients and agents do by default, before backends that do not offer all of it."""

from __future__ import annotations

import json
from base64 import b64encode
from struct import pack
from typing import Any

import pytest
from fakes import HELLO, Fake, Other, make_instance, serving
from official import anthropic, openai

from nexus_gateway.provider import Model
from nexus_gateway.testing.gateway import Served
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream

VERSION = {"anthropic-version": "2023-06-01"}
PNG = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
IMAGE = {"type": "image", "source": PNG}
ASK: dict[str, Any] = {"model": "claude-opus-5-5", "max_tokens": 9}


def claude(served: Served) -> Any:
    return anthropic.AsyncAnthropic(base_url=served.url, api_key="k", max_retries=0)


@pytest.mark.parametrize("kind", ["create", "continue"])
async def test_a_thread_is_refused_as_its_client_expects(upstream: FakeUpstream, kind: str) -> None:
    thread = {"type": kind, **({"previous_message_id": "msg_1"} if kind == "continue" else {})}
    async with serving(make_instance(upstream)) as served, claude(served) as client:
        with pytest.raises(anthropic.BadRequestError) as raised:
            await client.messages.create(**ASK, **HELLO, extra_body={"thread": thread})
    error = raised.value.body["error"]
    assert error["type"] == "invalid_request_error"
    assert error["details"] == {
        "error_code": "thread_unsupported_request",
        "unsupported": ["thread"],
    }
    assert upstream.hits() == 0


async def test_tokens_are_estimated_if_no_backend_counts_them(upstream: FakeUpstream) -> None:
    counts = []
    async with serving(make_instance(upstream)) as served, claude(served) as client:
        for content in ("Hi", "Hi " * 1000, [{**IMAGE, "source": {**PNG, "data": "A" * 99_999}}]):
            messages = [{"role": "user", "content": content}]
            raw = client.messages.with_raw_response
            response = await raw.count_tokens(
                model=ASK["model"],
                messages=messages,
                extra_headers={"Origin": "http://localhost:5173"},
            )
            assert response.headers["x-nexus-estimate"] == "true"
            assert "X-Nexus-Estimate" in response.headers["access-control-expose-headers"]
            counts.append((await response.parse()).input_tokens)
    assert 0 < counts[0] < 30
    assert 700 < counts[1] < 1000
    assert 1600 <= counts[2] < 1700
    assert upstream.hits() == 0


class Catalogue(Fake):
    models = (
        *(Model(f"m-{n}", 1000 + n, max_output=n) for n in range(1, 5)),
        Model("vectors", kind="embeddings"),
    )
    default_model = "m-1"


async def test_models_are_listed_in_anthropics_shape_for_its_clients(
    upstream: FakeUpstream,
) -> None:
    ids = ["auto", "m-1", "m-2", "m-3", "m-4"]
    async with serving(make_instance(upstream, provider=Catalogue)) as served:
        async with claude(served) as client:
            page = await client.models.list(limit=2)
            assert (page.has_more, page.first_id, page.last_id) == (True, "auto", "m-1")
            assert [model.id async for model in client.models.list(limit=2)] == ids
            assert [m.id for m in (await client.models.list(before_id="m-3", limit=2)).data] == [
                "m-1",
                "m-2",
            ]
            model = await client.models.retrieve("m-4")
            assert (model.type, model.display_name, model.lifecycle) == ("model", "m-4", "active")
            assert (model.max_input_tokens, model.max_tokens) == (1004, 4)
            with pytest.raises(anthropic.NotFoundError) as raised:
                await client.models.retrieve("unknown/model")
            assert raised.value.body["error"]["type"] == "not_found_error"
            for wrong in ({"limit": 0}, {"limit": 1001}, {"after_id": "unknown"}):
                with pytest.raises(anthropic.BadRequestError):
                    await client.models.list(**wrong)
        async with openai.AsyncOpenAI(base_url=served.url + "/v1", api_key="k") as client:
            assert [m.id async for m in client.models.list()] == [*ids, "vectors"]


def looked(content: list[Any]) -> list[Any]:
    use = {"type": "tool_use", "id": "c", "name": "Read", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "c", "content": content}
    return [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [result]},
    ]


def looked_in_a_chat() -> list[Any]:
    function = {"name": "Read", "arguments": "{}"}
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    return [
        {"role": "user", "content": "Look."},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "c", "content": [part]},
    ]


def looked_in_responses(kind: str) -> list[Any]:
    call = {"function_call": {"arguments": "{}"}, "custom_tool_call": {"input": "a.png"}}[kind]
    picture = {"type": "input_image", "image_url": "data:image/png;base64,AA=="}
    parts = [{"type": "input_text", "text": "A picture:"}, picture]
    return [
        {"role": "user", "content": [{"type": "input_text", "text": "Look."}]},
        {"type": kind, "call_id": "c", "name": "Read", **call},
        {"type": f"{kind}_output", "call_id": "c", "output": parts},
    ]


LOOKED: dict[str, tuple[str, dict[str, Any]]] = {
    "messages": ("/v1/messages", {"messages": looked([IMAGE])}),
    "chat": ("/v1/chat/completions", {"messages": looked_in_a_chat()}),
    "function": ("/v1/responses", {"input": looked_in_responses("function_call")}),
    "custom": ("/v1/responses", {"input": looked_in_responses("custom_tool_call")}),
}
each_look = pytest.mark.parametrize(("path", "body"), LOOKED.values(), ids=LOOKED)


@each_look
@pytest.mark.parametrize("stream", [True, False])
async def test_an_agent_goes_on_without_the_image_of_a_result(
    upstream: FakeUpstream, path: str, body: dict[str, Any], stream: bool
) -> None:
    body = {"model": "auto", "stream": stream, "max_tokens": 9, **body}
    async with serving(make_instance(upstream, provider=Other, name="other")) as served:
        status, _, _ = await served.post(path, body)
    assert status == 200
    assert b"base64" not in upstream.requests[0].raw
    assert b"An image was left out" in upstream.requests[0].raw


@each_look
async def test_a_model_that_takes_images_gets_the_image_of_a_result(
    upstream: FakeUpstream, path: str, body: dict[str, Any]
) -> None:
    blind = make_instance(upstream, provider=Other, name="other")
    body = {"model": "auto", "max_tokens": 9, **body}
    async with serving(blind, make_instance(upstream, 2)) as served:
        for _ in range(4):
            assert (await served.post(path, body))[0] == 200
    assert all(b"base64" in received.raw for received in upstream.requests)


async def test_an_image_of_the_user_may_not_go(upstream: FakeUpstream) -> None:
    items = looked_in_responses("function_call")
    items[0]["content"] += items[2]["output"][1:]
    async with serving(make_instance(upstream, provider=Other, name="other")) as served:
        status, _, _ = await served.post("/v1/responses", {"model": "auto", "input": items})
    assert (status, upstream.hits()) == (400, 0)


class Vectors(Fake):
    models = (Model("vectors", kind="embeddings"),)
    endpoints = {"embeddings": "/embeddings"}


NUMBERS = [0.25, -0.5, 1.0]
BASE64 = b64encode(pack("<3f", *NUMBERS)).decode()
USAGE = {"prompt_tokens": 3, "total_tokens": 3}


def answer(*vectors: Any) -> Reply:
    data = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)]
    body = {"object": "list", "data": data, "model": "vectors", "usage": USAGE}
    return Reply(body=json.dumps(body).encode())


@pytest.mark.parametrize("count", [1, 20_000], ids=["small", "large"])
@pytest.mark.parametrize("given", [NUMBERS, BASE64], ids=["numbers", "base64"])
@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"encoding_format": "base64"}, BASE64),
        ({"encoding_format": "float"}, NUMBERS),
        ({}, NUMBERS),
    ],
)
async def test_vectors_have_the_form_that_was_asked_for(
    upstream: FakeUpstream, asked: Any, expected: Any, given: Any, count: int
) -> None:
    upstream.default = answer(*[given] * count)
    async with serving(make_instance(upstream, provider=Vectors)) as served:
        body = {"model": "vectors", "input": "x", **asked}
        status, text, _ = await served.post("/v1/embeddings", body)
    got = json.loads(text)
    assert (status, got["usage"], len(got["data"])) == (200, USAGE, count)
    assert all(vector["embedding"] == expected for vector in got["data"])
    assert upstream.requests[0].body == body


async def test_a_backend_that_refuses_base64_is_asked_for_numbers(upstream: FakeUpstream) -> None:
    fault = {"message": "Unsupported encoding_format: base64", "type": "invalid_request_error"}
    upstream.script(Reply(status=400, error=fault), answer(NUMBERS))
    instance = make_instance(upstream, provider=Vectors)
    async with (
        serving(instance) as served,
        openai.AsyncOpenAI(base_url=served.url + "/v1", api_key="k", max_retries=0) as client,
    ):
        got = await client.embeddings.create(model="vectors", input="x")
    assert got.data[0].embedding == NUMBERS
    formats = [received.body.get("encoding_format") for received in upstream.requests]
    assert formats == ["base64", None]


async def test_a_refusal_for_another_reason_is_the_callers(upstream: FakeUpstream) -> None:
    upstream.default = Reply(status=400, error={"message": "Too long.", "type": "odd"})
    async with serving(make_instance(upstream, provider=Vectors)) as served:
        body = {"model": "vectors", "input": "x", "encoding_format": "base64"}
        status, text, _ = await served.post("/v1/embeddings", body)
    assert (status, "Too long." in text, upstream.hits()) == (400, True, 1)


@pytest.mark.parametrize("broken", [["x"], [None]])
async def test_vectors_that_cannot_be_read_are_the_backends_failure(
    upstream: FakeUpstream, broken: Any
) -> None:
    upstream.default = answer(broken)
    async with serving(make_instance(upstream, provider=Vectors), max_attempts=1) as served:
        body = {"model": "vectors", "input": "x", "encoding_format": "base64"}
        status, _, _ = await served.post("/v1/embeddings", body)
    assert status == 503


@pytest.mark.parametrize("model", ["claude-opus-5-5", "claude-haiku-4-5-20251001", "opus"])
@pytest.mark.parametrize(
    "endpoint",
    ["/v1/messages", "/v1/messages/count_tokens", "/v1/chat/completions", "/v1/responses"],
)
async def test_a_strict_gateway_says_what_to_set(
    upstream: FakeUpstream, endpoint: str, model: str
) -> None:
    async with serving(make_instance(upstream), strict_models=True) as served:
        body = {**ASK, **HELLO, "input": "Hi", "model": model}
        status, text, _ = await served.post(endpoint, body)
    assert status == 404
    for word in (model, "fake-large", "STRICT_MODELS", "in the client"):
        assert word in text


async def test_a_late_system_message_and_an_effort_suit_any_template(
    upstream: FakeUpstream,
) -> None:
    late = [*HELLO["messages"], {"role": "system", "content": "Late."}, *HELLO["messages"]]
    body = {**ASK, "system": "First.", "messages": late, "output_config": {"effort": "high"}}
    async with serving(make_instance(upstream)) as served:
        assert (await served.post("/v1/messages", body))[0] == 200
    sent = upstream.requests[0].body
    assert [message["role"] for message in sent["messages"]] == ["system", "user", "user"]
    assert sent["messages"][0]["content"] == "First.\n\nLate."
    assert "reasoning_effort" not in sent
