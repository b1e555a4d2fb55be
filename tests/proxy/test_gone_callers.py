"""Callers that disconnect at any point of their request, and streams that keep their pace."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from fakes import HELLO, make_instance, serving
from raw import EVENT, FINISH, HEAD, Wire, asking, connected, listening
from waiting import until

from nexus_gateway.routing.breaker import State
from nexus_gateway.testing.gateway import Served
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream
from nexus_gateway.upstream import client

pytestmark = pytest.mark.usefixtures("each_way")


@contextlib.asynccontextmanager
async def disconnecting(
    served: Served, data: bytes, when: Callable[[], object]
) -> AsyncIterator[None]:
    """Send a request, disconnect once `when` is true, and check that nothing is left behind."""
    tasks = len(asyncio.all_tasks())
    instance = served.instances[0]
    async with connected(served) as (_, writer):
        writer.write(data)
        await until(when)
    yield
    await until(lambda: instance.in_flight == served.gateway.drain.in_flight == 0)
    await until(lambda: len(asyncio.all_tasks()) <= tasks)
    assert instance.default.breaker.state() is State.CLOSED
    assert instance.health.success_rate() in (None, 1)


AT = {
    "before the head": Reply(hang=True),
    "before the first content": Reply(hang_after=0),
    "in the middle": Reply(hang_after=2),
    "in a flood": Reply(text=("x" * 5000 + " ") * 4000),  # more than all buffers can hold
}


@pytest.mark.proves("F29", "I-16", "I-33")
@pytest.mark.parametrize("at", AT)
async def test_disconnecting_from_a_stream_closes_its_upstream(
    upstream: FakeUpstream, at: str
) -> None:
    upstream.default = AT[at]
    async with serving(make_instance(upstream)) as served:
        async with disconnecting(served, asking(stream=True), lambda: upstream.requests):
            assert await upstream.requests[0].gone(30)
        assert upstream.hits() == 1


@pytest.mark.proves("F29", "I-16", "I-33")
async def test_disconnecting_before_a_response_closes_its_upstream(upstream: FakeUpstream) -> None:
    upstream.default = Reply(hang=True)
    async with serving(make_instance(upstream)) as served:
        async with disconnecting(served, asking(), lambda: upstream.requests):
            assert await upstream.requests[0].gone(30)
        assert upstream.hits() == 1


@pytest.mark.proves("F29", "I-23", "I-33")
async def test_disconnecting_between_attempts_ends_them(upstream: FakeUpstream) -> None:
    upstream.default = Reply(status=500)
    instance = make_instance(upstream)
    async with serving(instance) as served, connected(served) as (_, writer):
        writer.write(asking(stream=True))
        await until(lambda: upstream.hits() and instance.in_flight == 1)
        writer.transport.abort()
        await until(lambda: instance.in_flight == served.gateway.drain.in_flight == 0)
        tried = upstream.hits()  # one, unless the machine is slower than the pause
        await asyncio.sleep(0.25)  # as long as the first two pauses together
        assert upstream.hits() <= tried + 1  # one may have been on its way


@pytest.mark.proves("F29")
@pytest.mark.parametrize("sent", [0, 10, 100, -1])
async def test_disconnecting_while_sending_reaches_no_upstream(
    upstream: FakeUpstream, sent: int
) -> None:
    async with serving(make_instance(upstream)) as served:
        tasks = len(asyncio.all_tasks())
        async with connected(served) as (_, writer):
            writer.write(asking(stream=True)[:sent])
            await asyncio.sleep(0.02)
        await until(lambda: len(asyncio.all_tasks()) <= tasks)
        assert (await served.health())["inFlightRequests"] == 0
    assert upstream.hits() == 0


class Prompted(Wire):
    """Send the next word after each prompt."""

    def __init__(self, *words: bytes) -> None:
        super().__init__(b"")
        self.words = words
        self.prompts = asyncio.Semaphore(0)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + b"\r\n")
        for word in self.words:
            await self.prompts.acquire()
            writer.write(b"%x\r\n%b\r\n" % (len(word), word))
        writer.write(b"0\r\n\r\n")
        writer.close()


def streamed(served: Served) -> Any:
    body = {**HELLO, "stream": True}
    return served.session.post(f"{served.url}/v1/chat/completions", json=body)


@pytest.mark.proves("F26", "I-39")
async def test_each_event_is_sent_before_the_next_arrives() -> None:
    words = [EVENT % b"%d" % n + b"\n\n" for n in range(20)]
    wire = Prompted(*words, FINISH + b"\n\n", b"data: [DONE]\n\n")
    async with listening(wire) as url, serving(make_instance(url)) as served:
        wire.prompts.release()
        async with asyncio.timeout(30), streamed(served) as response:
            for word in words:
                await response.content.readuntil(word.split(b'"m"')[1])
                wire.prompts.release()
            wire.prompts.release()
            assert (await response.read()).endswith(b"data: [DONE]\n\n")


@pytest.mark.proves("F20", "I-35")
async def test_comments_reset_the_idle_timeout_once_a_stream_has_begun() -> None:
    begun, finish = EVENT % b"one" + b"\n\n", FINISH + b"\n\ndata: [DONE]\n\n"
    wire = Prompted(begun, *[b": still there\n\n"] * 8, finish)
    async with listening(wire) as url, serving(make_instance(url), idle_timeout_ms=800) as served:
        wire.prompts.release()
        async with streamed(served) as response:
            for _ in range(9):
                await asyncio.sleep(0.1)
                wire.prompts.release()
            assert (await response.read()).endswith(b"data: [DONE]\n\n")
        wire.prompts.release()
        async with asyncio.timeout(30), streamed(served) as response:  # and then nothing
            assert b'"upstream_idle_timeout"' in await response.read()


@pytest.mark.proves("F13")
async def test_a_connect_timeout_fails_over(
    upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = client.aiohttp.ClientTimeout(total=None, sock_connect=1)
    monkeypatch.setattr(client, "_TIMEOUT", limit)
    with contextlib.ExitStack() as sockets:
        full = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        # A listener whose queue is full drops the next connection.
        for _ in range(4):
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        lost = make_instance(f"http://127.0.0.1:{full.getsockname()[1]}/v1")
        async with serving(lost, make_instance(upstream, 2)) as served:
            status, _, headers = await served.chat(headers={"X-Routing-Mode": "round-robin"})
            assert (status, headers["X-Nexus-Attempts"]) == (200, "2")
    assert lost.default.last_reason == "could not be reached in time"
