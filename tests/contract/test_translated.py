"""Translated responses: keep-alives, whose fault an error is, and fields that must not get lost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from aiohttp import web
from endpoints import Able, anthropic, form
from fakes import Fake, make_instance, serving

from nexus_gateway.dialects.messages.response import UNSIGNED, MessageEncoder
from nexus_gateway.provider import (
    Call,
    HttpRequest,
    InProcess,
    Outcome,
    Translator,
    Verdict,
    json_request,
)
from nexus_gateway.routing.breaker import State
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream
from nexus_gateway.testing.wire import MessagesWire, Wire
from nexus_gateway.wire.chunks import Answer, fold
from nexus_gateway.wire.sse import Event

HI = [{"role": "user", "content": "Hi"}]
MESSAGES: dict[str, Any] = {"messages": HI, "max_tokens": 9}
ANSWER = Answer("chatcmpl-1", 1, "m")


class Slow:
    """An upstream that sends keep-alives for a while before its second word."""

    def __init__(self, sign: bytes, wire: type[Wire]) -> None:
        self.sign = sign
        self.wire = wire
        self.base_url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        wire = self.wire()
        await response.write(wire.say(ANSWER.text("One")))
        for _ in range(6):
            await asyncio.sleep(0.05)
            await response.write(self.sign)
        for chunk in (ANSWER.text(" two"), ANSWER.finish()):
            await response.write(wire.say(chunk))
        await response.write(wire.end())
        return response


async def slow(sign: bytes, wire: type[Wire]) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/v1/{path:.*}", Slow(sign, wire).answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    await runner.cleanup()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
@pytest.mark.parametrize("native", [False, True], ids=["openai", "anthropic"])
async def test_comments_and_pings_reset_the_idle_timeout(path: str, native: bool) -> None:
    sign = b'event: ping\ndata: {"type": "ping"}\n\n' if native else b": PROCESSING\n\n"
    async for url in slow(sign, MessagesWire if native else Wire):
        fake = FakeUpstream()
        fake.base_url = url
        instance = anthropic(fake) if native else make_instance(url)
        body = {"input": "Hi"} if path == "/v1/responses" else MESSAGES
        async with serving(instance, idle_timeout_ms=250) as served:
            status, text, _ = await served.post(path, {**body, "stream": True})
        assert (status, "idle_timeout" in text, "two" in text) == (200, False, True)
        assert instance.health.success_rate() == 1.0


async def test_silence_is_still_a_timeout(upstream: FakeUpstream) -> None:
    upstream.default = Reply(hang_after=2, delay_s=0.01)
    async with serving(make_instance(upstream), idle_timeout_ms=150) as served:
        _, text, _ = await served.post("/v1/messages", {**MESSAGES, "stream": True})
    assert "upstream_idle_timeout" in text


async def test_a_stream_from_a_model_without_streams_is_the_callers_error(
    upstream: FakeUpstream,
) -> None:
    upstream.default = Reply(body=b'{"text": "said"}')
    instance = make_instance(upstream, provider=Able)
    kind = {"Content-Type": "multipart/form-data; boundary=XbX"}
    head = 'Content-Disposition: form-data; name="{}"'
    body = form(head.format("model")).replace(
        b'--XbX\r\nContent-Disposition: form-data; name="file"',
        b'--XbX\r\nContent-Disposition: form-data; name="stream"\r\n\r\ntrue\r\n'
        b'--XbX\r\nContent-Disposition: form-data; name="file"',
    )
    async with serving(instance) as served:
        for _ in range(4):
            status, text, _ = await served.post("/v1/audio/transcriptions", body, headers=kind)
            assert (status, json.loads(text)["error"]["param"]) == (400, "stream")
    assert instance.default.breaker.state() is State.CLOSED


async def test_a_misspelt_model_is_the_callers_error(
    upstream: FakeUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    upstream.default = Reply(status=404, error={"message": "No such model."})
    pair = [make_instance(upstream, n, provider=Able, name="able") for n in (1, 2)]
    async with serving(*pair) as served:
        body = {"model": "unlisted", "input": "x"}
        status, text, _ = await served.post("/v1/embeddings", body)
    assert (status, json.loads(text)["error"]["message"]) == (404, "No such model.")
    assert upstream.hits() == 2
    assert [i.default.last_reason for i in pair] == [None, None]
    assert "unlisted" not in caplog.text


async def test_thinking_added_by_the_gateway_is_not_counted(upstream: FakeUpstream) -> None:
    thought = {"type": "thinking", "thinking": "Hm", "signature": UNSIGNED}
    message = {"role": "assistant", "content": [thought, {"type": "text", "text": "Yes"}]}
    async with serving(anthropic(upstream)) as served:
        for path in ("/v1/messages", "/v1/messages/count_tokens"):
            await served.post(path, {"messages": [*HI, message, *HI], "max_tokens": 9})
    assert all(UNSIGNED.encode() not in received.raw for received in upstream.requests)
    assert upstream.hits() == 2


class Unsendable(Fake):
    title = "Unsendable"

    def authorize(self, key: Any) -> dict[str, Any]:
        return {"x-org": None}


class Misplaced(InProcess):
    title = "Misplaced"
    default_model = "m"

    async def generate(self, call: Call, answer: Answer) -> AsyncIterator[dict[str, Any]]:
        raise FileNotFoundError("a bug")
        yield answer.finish()


class Sudden(Translator):
    title = "Sudden"
    base_url = "http://127.0.0.1:9"
    default_model = "m"

    def encode(self, call: Call) -> HttpRequest:
        return json_request(call, "/chat/completions", {"stream": True}, {})

    def stream(  # type: ignore[override]
        self, events: AsyncIterator[Event], answer: Answer
    ) -> AsyncIterator[dict[str, Any]]:
        raise RuntimeError("a bug")


@pytest.mark.parametrize("cls", [Unsendable, Misplaced, Sudden], ids=lambda cls: cls.__name__)
async def test_an_error_in_a_plugin_is_logged_with_its_name(
    upstream: FakeUpstream, cls: Any, caplog: pytest.LogCaptureFixture
) -> None:
    bad = make_instance(upstream, provider=cls, name="bad", origin="nexus-bad 1.0")
    async with serving(bad, make_instance(upstream, 2)) as served:
        headers = {"X-Routing-Mode": "round-robin"}
        status, _, answered = await served.chat(headers=headers)
    assert (status, answered["X-Nexus-Provider"]) == (200, "Fake (Key #2)")
    assert "the plugin bad (nexus-bad 1.0)" in caplog.text
    assert bad.health.success_rate() == 0.0


class Terse(Fake):
    def read_failure(self, status: int, headers: Mapping[str, str], body: bytes) -> Verdict | None:
        return Verdict(Outcome.REFUSED, "no")


async def test_a_refusal_without_an_error_has_the_upstreams_error(upstream: FakeUpstream) -> None:
    upstream.default = Reply(status=409, error={"message": "Not twice."})
    async with serving(make_instance(upstream, provider=Terse)) as served:
        status, text, _ = await served.chat()
    assert (status, json.loads(text)["error"]["message"]) == (409, "Not twice.")


def test_a_message_begins_once_it_has_an_id() -> None:
    encoder = MessageEncoder(thinking=False)
    assert (
        encoder.encode({"id": "", "model": "", "choices": [], "prompt_filter_results": []}) == b""
    )
    assert b'"id":"msg_1"' in encoder.encode(ANSWER.text("x"))


def test_a_calls_name_may_arrive_late() -> None:
    encoder = MessageEncoder(thinking=False)
    first = ANSWER.call(0, "a", "")
    late = {"index": 0, "function": {"name": "f", "arguments": "{}"}}
    more = {**first, "choices": [{"index": 0, "delta": {"tool_calls": [late]}}]}
    encoded = encoder.encode(first) + encoder.encode(more) + encoder.finish()
    assert b'"name":"f"' in encoded
    assert encoded.count(b"content_block_start\n") == 1


def test_complete_calls_without_an_index_stay_separate() -> None:
    calls = [{"function": {"name": n, "arguments": f'{{"n": {n}}}'}} for n in "12"]
    chunk = {**ANSWER.text(""), "choices": [{"index": 0, "delta": {"tool_calls": calls}}]}
    folded = fold([chunk])["choices"][0]["message"]["tool_calls"]
    assert [call["function"]["name"] for call in folded] == ["1", "2"]


async def test_a_text_has_its_charset(upstream: FakeUpstream) -> None:
    upstream.default = Reply(body="Grüße".encode(), content_type="text/plain")
    kind = {"Content-Type": "multipart/form-data; boundary=XbX"}
    body = form('Content-Disposition: form-data; name="model"')
    async with serving(make_instance(upstream, provider=Able)) as served:
        _, text, headers = await served.post("/v1/audio/transcriptions", body, headers=kind)
    assert (text, headers["Content-Type"]) == ("Grüße", "text/plain; charset=utf-8")
