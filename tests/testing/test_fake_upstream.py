"""The fake upstream follows its script, as seen by a plain client."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream

REQUEST: dict[str, Any] = {"model": "m", "messages": [], "stream": True}
KEY = "key-one"


async def post(
    upstream: FakeUpstream, body: dict[str, Any] | None = None, key: str = KEY
) -> tuple[int, str, dict[str, str]]:
    headers = {"Authorization": f"Bearer {key}"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            upstream.base_url + "/chat/completions",
            json=REQUEST if body is None else body,
            headers=headers,
            allow_redirects=False,
        ) as response,
    ):
        return response.status, await response.text(), dict(response.headers)


def data(text: str) -> list[str]:
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]


def chunks(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data(text) if line.startswith('{"')]


def content(text: str) -> str:
    deltas = [choice["delta"] for chunk in chunks(text) for choice in chunk.get("choices", [])]
    return "".join(delta.get("content") or "" for delta in deltas)


async def test_without_a_script_the_answer_is_good(upstream: FakeUpstream) -> None:
    status, text, headers = await post(upstream)
    assert (status, content(text)) == (200, Reply().text)
    assert headers["Content-Type"] == "text/event-stream"
    assert data(text)[-1] == "[DONE]"
    assert chunks(text)[-1]["choices"][0]["finish_reason"] == "stop"


async def test_an_answer_not_streamed_has_a_message_and_usage(upstream: FakeUpstream) -> None:
    _, text, headers = await post(upstream, {**REQUEST, "stream": False})
    answer = json.loads(text)
    assert headers["Content-Type"].startswith("application/json")
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["content"] == Reply().text
    assert answer["usage"]["total_tokens"] > 0


async def test_scripts_by_key_precede_general_ones_and_defaults(upstream: FakeUpstream) -> None:
    upstream.script(Reply(status=500))
    upstream.script(Reply(status=429), key=KEY)
    upstream.defaults["other"] = Reply(status=401)
    assert [(await post(upstream))[0] for _ in range(3)] == [429, 500, 200]
    assert (await post(upstream, key="other"))[0] == 401
    assert (upstream.hits(), upstream.hits(KEY), upstream.hits("other")) == (4, 3, 1)


async def test_requests_are_recorded(upstream: FakeUpstream) -> None:
    await post(upstream)
    received = upstream.requests[0]
    assert (received.key, received.body, received.path) == (KEY, REQUEST, "/v1/chat/completions")
    assert json.loads(received.raw) == REQUEST
    assert received.finished
    assert not await received.gone(0.01)
    assert upstream.open == 0


async def test_failures_have_an_error_object(upstream: FakeUpstream) -> None:
    upstream.script(Reply(status=429, headers={"Retry-After": "7"}))
    upstream.script(Reply(status=400, error={"message": "no", "code": "bad"}))
    status, text, headers = await post(upstream)
    assert (status, headers["Retry-After"]) == (429, "7")
    assert json.loads(text)["error"]["message"]
    status, text, _ = await post(upstream)
    assert (status, json.loads(text)) == (400, {"error": {"message": "no", "code": "bad"}})


async def test_raw_bodies_and_redirects_are_sent(upstream: FakeUpstream) -> None:
    upstream.script(Reply(body=b"<html>", content_type="text/html"))
    upstream.script(Reply(status=302, headers={"Location": "http://127.0.0.1:9/"}))
    _, text, headers = await post(upstream)
    assert (text, headers["Content-Type"]) == ("<html>", "text/html")
    status, _, headers = await post(upstream)
    assert (status, headers["Location"]) == (302, "http://127.0.0.1:9/")


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
async def test_unusual_framing_has_the_same_content(upstream: FakeUpstream, newline: str) -> None:
    unusual = Reply(newline=newline, bytewise=True, comments=True, fields=True, text="Grüße, 世界")
    upstream.script(unusual)
    _, text, _ = await post(upstream)
    assert content(text) == "Grüße, 世界"
    assert f": PROCESSING{newline}{newline}" in text
    assert f"retry: 10{newline}" in text


async def test_a_byte_order_mark_is_sent(upstream: FakeUpstream) -> None:
    upstream.script(Reply(bom=True))
    headers = {"Authorization": f"Bearer {KEY}"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            upstream.base_url + "/chat/completions", json=REQUEST, headers=headers
        ) as response,
    ):
        assert (await response.read()).startswith(b"\xef\xbb\xbfdata: ")


@pytest.mark.parametrize(
    ("reply", "requested", "sent"),
    [
        (Reply(), False, False),
        (Reply(), True, True),
        (Reply(usage=True), False, True),
        (Reply(usage=False), True, False),
    ],
)
async def test_usage_is_sent_if_requested_or_scripted(
    upstream: FakeUpstream, reply: Reply, requested: bool, sent: bool
) -> None:
    upstream.script(reply)
    _, text, _ = await post(upstream, {**REQUEST, "stream_options": {"include_usage": requested}})
    assert any(chunk["choices"] == [] and chunk["usage"] for chunk in chunks(text)) is sent


async def test_tool_calls_are_split_into_chunks(upstream: FakeUpstream) -> None:
    upstream.default = Reply(tool_calls=True)
    _, text, _ = await post(upstream)
    calls = [
        call
        for chunk in chunks(text)
        for choice in chunk["choices"]
        for call in choice["delta"].get("tool_calls", [])
    ]
    assert len(calls) > 2
    arguments = "".join(call["function"]["arguments"] for call in calls)
    assert json.loads(arguments) == {"city": "Paris"}
    _, text, _ = await post(upstream, {**REQUEST, "stream": False})
    choice = json.loads(text)["choices"][0]
    function = choice["message"]["tool_calls"][0]["function"]
    assert (function["name"], json.loads(function["arguments"])) == (
        "get_weather",
        {"city": "Paris"},
    )
    assert choice["finish_reason"] == "tool_calls"


async def test_reasoning_comes_first(upstream: FakeUpstream) -> None:
    upstream.script(Reply(reasoning=True, role_first=False))
    _, text, _ = await post(upstream)
    assert chunks(text)[0]["choices"][0]["delta"]["reasoning_content"]


async def test_streams_can_be_incomplete(upstream: FakeUpstream) -> None:
    upstream.script(Reply(end_after=2), Reply(done=False), Reply(finish=None))
    _, text, _ = await post(upstream)
    assert content(text) == "Hello from"
    assert "[DONE]" not in text
    _, text, _ = await post(upstream)
    assert "[DONE]" not in text
    _, text, _ = await post(upstream)
    assert not any(choice["finish_reason"] for chunk in chunks(text) for choice in chunk["choices"])


async def test_a_stream_can_contain_errors_and_garbage(upstream: FakeUpstream) -> None:
    upstream.script(Reply(error_after=0, role_first=False), Reply(garbage_after=1))
    _, text, _ = await post(upstream)
    assert chunks(text)[0]["error"]["message"]
    _, text, _ = await post(upstream)
    assert "data: {not json\n\n" in text


@pytest.mark.parametrize("reply", [Reply(reset=True), Reply(cut_after=2), Reply(cut_after=0)])
async def test_connections_can_break(upstream: FakeUpstream, reply: Reply) -> None:
    upstream.script(reply)
    with pytest.raises(aiohttp.ClientError):
        await post(upstream)
    assert upstream.hits() == 1


@pytest.mark.parametrize(
    ("reply", "least_s"),
    [
        (Reply(head_delay_s=0.1), 0.1),
        (Reply(first_delay_s=0.1), 0.1),
        (Reply(delay_s=0.05, text="one two three"), 0.1),
    ],
)
async def test_delays_are_applied(
    upstream: FakeUpstream, reply: Reply, least_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept_s: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        slept_s.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", note)
    upstream.script(reply)
    await post(upstream)
    assert sum(slept_s) >= least_s


@pytest.mark.parametrize("reply", [Reply(hang=True), Reply(hang_after=1), Reply(delay_s=30)])
async def test_a_disconnected_client_is_detected(upstream: FakeUpstream, reply: Reply) -> None:
    upstream.script(reply)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(post(upstream), 0.2)
    received = upstream.requests[0]
    assert await received.gone(30)
    assert not received.finished
    assert upstream.open == 0


async def test_it_stops_while_replies_hang() -> None:
    async with FakeUpstream() as upstream:
        upstream.default = Reply(hang=True)
        request = asyncio.create_task(post(upstream))
        await asyncio.sleep(0.1)
        assert upstream.open == 1
    with pytest.raises(aiohttp.ClientError):
        await request
