"""Malicious bodies and invalid upstream answers, on every endpoint."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from importlib import metadata
from typing import Any

import pytest
from clock import FakeClock
from endpoints import BODIES, HI, Able, anthropic, form
from fakes import make_instance, serving

from nexus_gateway.dialects.body import MAX_CONTAINERS, MAX_DEPTH
from nexus_gateway.routing.breaker import State
from nexus_gateway.testing.gateway import instance_of
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream
from nexus_gateway.testing.wire import sse

both_ways = pytest.mark.usefixtures("each_way")


def nested(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.proves("F34", "S-14")
@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    "value", [nested(MAX_DEPTH + 5), [[]] * (MAX_CONTAINERS + 5)], ids=["deep", "many"]
)
async def test_excessive_nesting_is_rejected(upstream: FakeUpstream, path: str, value: Any) -> None:
    instance = make_instance(upstream, provider=Able)
    async with serving(instance) as served:
        status, text, _ = await served.post(path, {**BODIES[path], "metadata": value})
    assert status == 400
    assert "nested" in json.loads(text)["error"]["message"]
    assert (upstream.hits(), instance.default.breaker.state()) == (0, State.CLOSED)


@both_ways
@pytest.mark.parametrize("path", BODIES)
async def test_allowed_nesting_is_served(upstream: FakeUpstream, path: str) -> None:
    async with serving(make_instance(upstream, provider=Able)) as served:
        more = {"metadata": nested(MAX_DEPTH - 5)}
        for stream in (False, True) if path != "/v1/embeddings" else (False,):
            status, _, _ = await served.post(path, {**BODIES[path], **more, "stream": stream})
            assert status == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("field", ["thinking", "tool_choice", "output_config"])
@pytest.mark.parametrize("kind", [[], {}, 5, True])
async def test_a_type_must_be_a_string(
    upstream: FakeUpstream, field: str, kind: Any, stream: bool
) -> None:
    body = {**BODIES["/v1/messages"], field: {"type": kind}, "stream": stream}
    async with serving(make_instance(upstream)) as served:
        status, text, _ = await served.post("/v1/messages", body)
    assert (status, json.loads(text)["error"]["param"]) == (400, f"{field}.type")


async def test_messages_after_calls_are_joined(upstream: FakeUpstream) -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    messages = [{"role": "assistant", "content": f"{n} "} for n in range(2000)]
    items = [{"role": "user", "content": "Hi"}, call, *messages]
    async with serving(make_instance(upstream)) as served:
        assert (await served.post("/v1/responses", {"input": items}))[0] == 200
    last = upstream.requests[0].body["messages"][-1]
    assert last["content"] == "".join(f"{n} " for n in range(2000))


MODEL = 'Content-Disposition: form-data; name="model"'
HEADS = {
    "semicolons": 'Content-Disposition: form-data; name="' + ";" * 250_000 + '"',
    "parameters": "Content-Disposition: form-data" + '; a="b"' * 100_000,
    "many digits": f"Content-Disposition: form-data; name*<{'9' * 5000}>=x",
    "idna": "Content-Disposition: form-data; name=\"x\"; filename*=idna''" + "a" * 9000,
    "starred": "Content-Disposition: form-data; name*=utf-8''api_base",
    "twice": f'{MODEL}\r\nContent-Disposition: form-data; name="api_base"',
    "bare return": f'{MODEL}\rContent-Disposition: form-data; name="api_base"',
    "space": 'Content-Disposition : form-data; name="api_base"',
    "no name": "Content-Disposition: form-data",
    "attachment": 'Content-Disposition: attachment; name="model"',
    "no colon": "Content-Disposition",
}


@pytest.mark.proves("S-22")
@pytest.mark.parametrize("name", HEADS)
async def test_an_ambiguous_part_is_rejected(upstream: FakeUpstream, name: str) -> None:
    kind = {"Content-Type": "multipart/form-data; boundary=XbX"}
    async with serving(make_instance(upstream, provider=Able)) as served:
        status, _, _ = await served.post(
            "/v1/audio/transcriptions", form(HEADS[name], MODEL), headers=kind
        )
    assert (status, upstream.hits()) == (400, 0)


@pytest.mark.parametrize(
    "kind",
    [
        "multipart/form-data; boundary*=idna''x",
        "multipart/form-data; boundary*<99999>=x",
        "multipart/form-data; boundary=",
        "multipart/form-data",
    ],
)
async def test_an_invalid_boundary_is_rejected(upstream: FakeUpstream, kind: str) -> None:
    async with serving(make_instance(upstream, provider=Able)) as served:
        headers = {"Content-Type": kind}
        status, _, _ = await served.post("/v1/audio/transcriptions", form(MODEL), headers=headers)
    assert (status, upstream.hits()) == (415, 0)


@both_ways
async def test_the_number_of_form_fields_is_limited(upstream: FakeUpstream) -> None:
    kind = {"Content-Type": 'multipart/form-data; charset=x; boundary="X b+(X)"; a=b'}
    field = 'Content-Disposition: form-data; name="f"'
    async with serving(make_instance(upstream, provider=Able)) as served:
        body = form(MODEL, *[field] * 200, boundary="X b+(X)")
        status, text, _ = await served.post("/v1/audio/transcriptions", body, headers=kind)
        assert (status, "too many fields" in text) == (400, True)
        body = form(MODEL, *[field] * 50, boundary="X b+(X)")
        assert (await served.post("/v1/audio/transcriptions", body, headers=kind))[0] == 200
    assert upstream.requests[0].raw.count(b'name="f"') == 50


@pytest.mark.proves("F33", "S-14")
@pytest.mark.parametrize("path", [*BODIES, "/v1/audio/transcriptions"])
async def test_an_incomplete_body_times_out(upstream: FakeUpstream, path: str) -> None:
    async with serving(make_instance(upstream, provider=Able), idle_timeout_ms=100) as served:
        port = int(served.url.rsplit(":", 1)[1])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n"
        kind = "Content-Type: multipart/form-data; boundary=XbX\r\n\r\n--XbX"
        writer.write((head + kind).encode())
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n"), 30)
        writer.close()
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert served.gateway.drain.in_flight == 0


@both_ways
async def test_a_slow_upload_does_not_hold_a_probe(upstream: FakeUpstream) -> None:
    clock = FakeClock()
    instance = make_instance(upstream, provider=Able, clock=clock)
    deployment = instance.on("value")  # the form's model
    breaker = deployment.breaker
    for _ in range(3):
        breaker.failure(breaker.acquire())
    clock.now += 61

    async def slow() -> AsyncIterator[bytes]:
        body = form(MODEL)
        yield body[:-10]
        for byte in body[-10:]:
            await asyncio.sleep(0.05)
            yield bytes([byte])

    async with serving(instance, clock=clock, response_timeout_ms=200) as served:
        kind = {"Content-Type": "multipart/form-data; boundary=XbX"}
        url = served.url + "/v1/audio/transcriptions"
        async with served.session.post(url, data=slow(), headers=kind) as answer:
            assert answer.status == 408
        assert breaker.state() is State.HALF_OPEN
        assert breaker.admits()
        assert deployment.last_reason is None or "refused" not in deployment.last_reason


@both_ways
@pytest.mark.proves("S-01")
@pytest.mark.parametrize("model", [".", ".."])
async def test_a_deployment_name_is_never_a_relative_path(
    upstream: FakeUpstream, model: str
) -> None:
    (point,) = metadata.entry_points(group="nexus_gateway.providers", name="azure")
    azure = instance_of(point.load(), upstream.base_url, key="k" * 8)
    object.__setattr__(azure.account, "options", {"API_VERSION": "2024-10-21"})
    async with serving(azure) as served:
        status, _, _ = await served.chat({"messages": HI, "model": f"azure/{model}"})
    assert (status, upstream.hits()) == (400, 0)


async def test_errors_below_messages_have_anthropics_shape(upstream: FakeUpstream) -> None:
    async with serving(make_instance(upstream)) as served:
        status, text, _ = await served.post("/v1/messages/batches", {})
        assert (status, json.loads(text)["type"]) == (404, "error")
        async with served.session.get(served.url + "/v1/messages") as answer:
            assert (answer.status, (await answer.json())["type"]) == (405, "error")


CHUNK = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
INVALID_CHUNKS: list[Any] = [
    {"choices": [{"index": 0, "delta": {"content": {"a": 1}}}]},
    {"choices": [{"index": 0, "delta": {"tool_calls": [None]}}]},
    {"choices": [{"index": 0, "delta": {"tool_calls": {"a": 1}}}]},
    {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": "x"}]}}]},
    {"choices": [{"index": 0, "delta": "text"}]},
    {"choices": [], "usage": {"prompt_tokens": "x", "completion_tokens": [1]}},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": ["stop"]}]},
]
STREAM = {"Content-Type": "text/event-stream"}


@both_ways
@pytest.mark.proves("F22")
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses"])
@pytest.mark.parametrize("invalid", INVALID_CHUNKS, ids=str)
@pytest.mark.parametrize("late", [False, True], ids=["first", "late"])
async def test_an_invalid_chunk_causes_neither_a_500_nor_a_silent_end(
    upstream: FakeUpstream, path: str, invalid: Any, late: bool
) -> None:
    text = {**CHUNK, "choices": [{"index": 0, "delta": {"content": "so far"}}]}
    finish = {**CHUNK, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    events = [*([text] if late else []), {**CHUNK, **invalid}, finish]
    body = b"".join(sse(event) for event in events) + b"data: [DONE]\n\n"
    upstream.default = Reply(body=body, content_type="text/event-stream")
    instance = make_instance(upstream)
    async with serving(instance, max_attempts=1) as served:
        status, output, headers = await served.post(path, {**BODIES[path], "stream": True})
    assert status in (200, 503)
    if status == 200:
        assert headers["Content-Type"].startswith("text/event-stream")
        assert any(end in output for end in ("message_stop", "response.completed", "event: error"))
    assert instance.in_flight == 0


EMPTY = {
    "only the end": b"data: [DONE]\n\n",
    "a role": sse({**CHUNK, "choices": [{"index": 0, "delta": {"role": "assistant"}}]})
    + b"data: [DONE]\n\n",
}


@both_ways
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
@pytest.mark.parametrize("name", EMPTY)
async def test_an_empty_stream_is_a_failure(upstream: FakeUpstream, path: str, name: str) -> None:
    upstream.script(Reply(body=EMPTY[name], content_type="text/event-stream"))
    pair = make_instance(upstream), make_instance(upstream, 2)
    async with serving(*pair) as served:
        status, _, headers = await served.post(path, {**BODIES[path], "stream": True})
    assert (status, headers["X-Nexus-Attempts"]) == (200, "2")


INVALID_MESSAGES: list[Any] = [
    {"type": "message_start", "message": "text"},
    {"type": "message_start", "message": {"usage": {"input_tokens": "many"}}},
    {"type": "content_block_start", "content_block": "text"},
    {"type": ["message_stop"]},
    [1],
]


@both_ways
@pytest.mark.parametrize("invalid", INVALID_MESSAGES, ids=str)
async def test_an_invalid_first_native_event_fails_over(
    upstream: FakeUpstream, invalid: Any
) -> None:
    upstream.script(Reply(body=sse(invalid, "message_start"), content_type="text/event-stream"))
    pair = anthropic(upstream), anthropic(upstream, 2)
    async with serving(*pair) as served:
        status, text, headers = await served.post(
            "/v1/messages", {**BODIES["/v1/messages"], "stream": True}
        )
    assert (status, headers["X-Nexus-Attempts"]) == (200, "2")
    assert "message_stop" in text


@both_ways
@pytest.mark.proves("F22")
async def test_garbage_in_a_native_stream_breaks_it(upstream: FakeUpstream) -> None:
    upstream.default = Reply(garbage_after=3, delay_s=0.01)
    async with serving(anthropic(upstream)) as served:
        _, text, _ = await served.post("/v1/messages", {**BODIES["/v1/messages"], "stream": True})
    assert "not json" not in text
    assert "event: error" in text
    assert "message_stop" not in text


@both_ways
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"usage": {"input_tokens": [], "output_tokens": "x"}}, 200),
        ({"content": "text"}, 503),
        ({"content": []}, 200),
    ],
)
async def test_the_shape_of_a_native_message_is_checked(
    upstream: FakeUpstream, fields: Any, expected: int
) -> None:
    message = {"type": "message", "content": [], "usage": {}, **fields}
    upstream.default = Reply(body=json.dumps(message).encode())
    async with serving(anthropic(upstream), max_attempts=1) as served:
        status, _, _ = await served.post("/v1/messages", BODIES["/v1/messages"])
    assert status == expected


@both_ways
@pytest.mark.proves("S-16")
@pytest.mark.parametrize(
    ("kind", "status", "shown"),
    [
        ("text/vtt", 200, "text/vtt"),
        ("application/octet-stream", 200, "text/plain"),
        ("image/svg+xml", 503, "application/json"),
        ("application/xhtml+xml", 503, "application/json"),
    ],
)
async def test_a_transcript_is_plain_text_or_an_error(
    upstream: FakeUpstream, kind: str, status: int, shown: str
) -> None:
    upstream.default = Reply(body=b"text", content_type=kind)
    head = {"Content-Type": "multipart/form-data; boundary=XbX"}
    async with serving(make_instance(upstream, provider=Able), max_attempts=1) as served:
        got, _, headers = await served.post("/v1/audio/transcriptions", form(MODEL), headers=head)
    assert (got, headers["Content-Type"].split(";")[0]) == (status, shown)
