"""Streams that never come to an end: STREAM_TIMEOUT_MS."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from endpoints import BODIES, Able, Native
from fakes import make_instance, serving

from nexus_gateway.provider import Call, InProcess, Provider
from nexus_gateway.settings import Settings
from nexus_gateway.testing import FakeUpstream, Reply
from nexus_gateway.upstream.streams import StreamLimits, StreamTimeout
from nexus_gateway.wire.chunks import Answer, Chunk

ENDLESS = Reply(text="word " * 5_000, delay_s=0.01)
STREAMED = ("/v1/chat/completions", "/v1/messages", "/v1/responses")


class Endless(InProcess):
    title = "Endless"
    needs_key = False

    async def generate(self, call: Call, answer: Answer) -> AsyncIterator[Chunk]:
        while True:
            await asyncio.sleep(0.01)
            yield answer.text("word ")


def last_event(text: str) -> Any:
    data = [line for line in text.splitlines() if line.startswith("data: ")]
    return json.loads(data[-1].removeprefix("data: "))


@pytest.mark.proves("F68")
@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("path", STREAMED)
@pytest.mark.parametrize("provider", [Able, Native, Endless])
async def test_a_stream_without_an_end_is_ended_by_an_error_event(
    upstream: FakeUpstream, provider: type[Provider], path: str
) -> None:
    upstream.default = ENDLESS
    instance = make_instance(upstream, provider=provider)
    limits = {"stream_timeout_ms": 200, "resume": True}  # another one would not end it either
    async with serving(instance, make_instance(upstream, 2, provider=provider), **limits) as served:
        status, text, _ = await served.post(path, {**BODIES[path], "stream": True})
        assert status == 200
        assert "word" in text
        assert "STREAM_TIMEOUT_MS" in str(last_event(text))
        assert "[DONE]" not in text
        assert served.gateway.drain.in_flight == 0
    if provider is not Endless:
        assert upstream.hits() == 1
        assert await upstream.requests[0].gone()


@pytest.mark.usefixtures("each_way")
async def test_a_caller_that_does_not_read_holds_no_stream_beyond_the_limit(
    upstream: FakeUpstream,
) -> None:
    upstream.default = Reply(text=("x" * 4000 + " ") * 5000)
    limits = {"stream_timeout_ms": 300, "write_timeout_ms": 600_000}
    async with serving(make_instance(upstream), **limits) as served:
        url = f"{served.url}/v1/chat/completions"
        async with served.session.post(
            url, json={**BODIES["/v1/chat/completions"], "stream": True}
        ) as response:
            assert response.status == 200
            assert await upstream.requests[0].gone()  # not a byte of the body was read


async def test_zero_is_no_limit(upstream: FakeUpstream) -> None:
    async with serving(make_instance(upstream), stream_timeout_ms=0) as served:
        status, text, _ = await served.chat()
        assert (status, text.rstrip().endswith("[DONE]")) == (200, True)


async def test_a_cancellation_by_someone_else_goes_on() -> None:
    async def waiting() -> None:
        with StreamTimeout(StreamLimits(0.0, 0.0)) as limit:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            limit._check()
            await asyncio.sleep(60)

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(waiting())


def test_the_default_is_an_hour() -> None:
    assert Settings().stream_timeout_ms == 3_600_000
