"""Plugins with their own wire format, and in-process plugins, over a real socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fakes import HELLO, make_instance, serving

from nexus_gateway.provider import (
    Call,
    HttpRequest,
    InProcess,
    Outcome,
    Translator,
    Verdict,
    json_request,
)
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream
from nexus_gateway.wire.chunks import Answer
from nexus_gateway.wire.sse import Event

WORDS = ["One", " two", " three"]


class Foreign(Translator):
    """A provider with `event: word` lines."""

    title = "Foreign"
    base_url = "http://127.0.0.1:9"
    default_model = "foreign-1"
    headers = {"x-version": "7"}

    def encode(self, call: Call) -> HttpRequest:
        payload = {"who": call.model, "say": call.chat["messages"][-1]["content"], "stream": True}
        return json_request(call, "/speak", payload, {"x-key": call.key.reveal()})

    async def stream(
        self, events: AsyncIterator[Event], answer: Answer
    ) -> AsyncIterator[dict[str, Any]]:
        async for event in events:
            if event.name == "word":
                yield answer.text(json.loads(event.data))
            elif event.name == "fault":
                yield {"error": {"message": "overloaded"}}
            elif event.name == "end":
                yield answer.finish()
                yield answer.usage(1, len(WORDS))

    def read_failure(self, status: int, headers: Any, body: bytes) -> Verdict | None:
        if status == 418:
            return Verdict(Outcome.RATE_LIMITED, "brewing", status, park_s=5)
        if status == 419:
            raise RuntimeError("a bug in the plugin")
        return None


class Local(InProcess):
    title = "Local"
    default_model = "local-1"
    fault = ""

    async def generate(self, call: Call, answer: Answer) -> AsyncIterator[dict[str, Any]]:
        for number, word in enumerate(WORDS):
            if self.fault == f"raise {number}":
                raise RuntimeError("a bug in the plugin")
            if self.fault == f"hang {number}":
                await asyncio.Event().wait()
            if self.fault == f"stop {number}":
                return
            yield answer.text(word)
        yield answer.finish()


def local(fault: str) -> type[Local]:
    return type("Local", (Local,), {"fault": fault})


def foreign_reply(*lines: str) -> Reply:
    words = "".join(f"event: word\ndata: {json.dumps(word)}\n\n" for word in WORDS)
    body = words + "".join(f"event: {line}\ndata: 0\n\n" for line in lines)
    return Reply(body=body.encode(), content_type="text/event-stream")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_foreign_format_is_translated(upstream: FakeUpstream, stream: bool) -> None:
    upstream.default = foreign_reply("end")
    async with serving(make_instance(upstream, provider=Foreign, name="foreign")) as served:
        status, text, headers = await served.chat(stream=stream)
    assert status == 200
    (received,) = upstream.requests
    assert (received.path, received.headers["x-key"]) == ("/v1/speak", "key-one-secret")
    assert received.headers["x-version"] == "7"
    assert received.body == {"who": "foreign-1", "say": "Hello!", "stream": True}
    assert headers["X-Nexus-Provider"] == "Foreign (Key #1)"
    if stream:
        assert text.endswith("data: [DONE]\n\n")
        assert "usage" not in text
        assert [w for w in WORDS if json.dumps(w) in text] == WORDS
    else:
        body = json.loads(text)
        assert body["choices"][0]["message"]["content"] == "".join(WORDS)
        assert body["usage"]["completion_tokens"] == 3
        assert body["object"] == "chat.completion"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("reply", [Reply(status=500), Reply(status=419), Reply(body=b"data: x")])
async def test_a_foreign_failure_fails_over(
    upstream: FakeUpstream, reply: Reply, stream: bool
) -> None:
    upstream.script(reply)
    upstream.default = foreign_reply("end")
    pair = [make_instance(upstream, n, provider=Foreign, name="foreign") for n in (1, 2)]
    async with serving(*pair) as served:
        status, _, headers = await served.chat(stream=stream)
    assert (status, headers["X-Nexus-Attempts"]) == (200, "2")


async def test_a_provider_may_classify_its_failures(upstream: FakeUpstream) -> None:
    upstream.default = Reply(status=418)
    instance = make_instance(upstream, provider=Foreign)
    async with serving(instance) as served:
        status, _, headers = await served.chat()
    assert (status, headers["Retry-After"]) == (429, "5")
    assert instance.default.last_reason == "brewing"


@pytest.mark.parametrize("lines", [(), ("fault",)])
async def test_a_foreign_response_that_breaks_ends_with_an_error(
    upstream: FakeUpstream, lines: tuple[str]
) -> None:
    upstream.default = foreign_reply(*lines)
    async with serving(make_instance(upstream, provider=Foreign), max_attempts=1) as served:
        _, text, _ = await served.chat()
        assert '"error"' in text
        assert "[DONE]" not in text
        assert (await served.chat(stream=False))[0] == 503


class Clumsy(Foreign):
    def encode(self, call: Call) -> HttpRequest:
        raise KeyError("a bug in the plugin")


async def test_a_plugin_that_cannot_encode_affects_no_other(upstream: FakeUpstream) -> None:
    upstream.default = Reply()
    clumsy = make_instance(upstream, provider=Clumsy, name="clumsy")
    async with serving(clumsy, make_instance(upstream, 2)) as served:
        for stream in (True, False):
            status, text, headers = await served.chat(
                stream=stream, headers={"X-Routing-Mode": "round-robin"}
            )
            assert (status, headers["X-Nexus-Provider"]) == (200, "Fake (Key #2)")
            assert "bug" not in text


@pytest.mark.parametrize("stream", [True, False])
async def test_an_in_process_provider_answers(stream: bool) -> None:
    async with serving(make_instance(provider=Local, name="local")) as served:
        status, text, headers = await served.chat(stream=stream)
    assert (status, headers["X-Nexus-Provider"]) == (200, "Local")
    assert text.endswith("[DONE]\n\n") == stream


@pytest.mark.parametrize("fault", ["raise 0", "hang 0", "stop 0"])
async def test_in_process_failures_before_content_fail_over(
    upstream: FakeUpstream, fault: str
) -> None:
    pair = make_instance(provider=local(fault), name="local"), make_instance(upstream)
    async with serving(*pair, first_token_timeout_ms=100) as served:
        status, text, headers = await served.chat(headers={"X-Routing-Mode": "round-robin"})
    assert (status, headers["X-Nexus-Provider"]) == (200, "Fake (Key #1)")
    assert "bug" not in text


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("raise 2", "upstream_stream_error"),
        ("hang 2", "upstream_idle_timeout"),
        ("stop 2", "upstream_stream_error"),
    ],
)
async def test_in_process_failures_after_content_end_the_stream(fault: str, code: str) -> None:
    instance = make_instance(provider=local(fault), name="local")
    async with serving(instance, idle_timeout_ms=100, max_attempts=1) as served:
        status, text, _ = await served.chat()
        assert status == 200
        assert json.loads(text.removesuffix("\n\n").split("data: ")[-1])["error"]["code"] == code
        assert "bug" not in text
        assert (await served.chat(stream=False))[0] == 503
    assert instance.in_flight == 0


async def test_a_plugin_gets_the_callers_complete_body() -> None:
    chats: list[Any] = []

    class Curious(Local):
        async def generate(self, call: Call, answer: Answer) -> AsyncIterator[dict[str, Any]]:
            chats.append(dict(call.chat))
            yield answer.text("x")
            yield answer.finish()

    async with serving(make_instance(provider=Curious, name="local")) as served:
        await served.chat({**HELLO, "temperature": 0.5, "model": "local/big"})
    assert chats == [{**HELLO, "temperature": 0.5, "model": "big", "stream": True}]
