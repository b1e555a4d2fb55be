"""Callers' connections that wait for another request."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack

import pytest
from fakes import make_instance, serving
from raw import asking, connected
from waiting import until

from nexus_gateway.testing import FakeUpstream, Reply
from nexus_gateway.testing.gateway import Served
from nexus_gateway.web import connections

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
IDLE = "nexus_caller_connections"


async def answered(streams: Streams) -> None:
    """Send a request and read its answer; the connection is idle then."""
    reader, writer = streams
    writer.write(asking())
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
    await reader.readexactly(length)


async def count(served: Served) -> float:
    async with served.session.get(f"{served.url}/metrics") as response:
        lines = (await response.text()).splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{IDLE} "))


@pytest.mark.proves("F72")
async def test_an_idle_connection_is_closed_and_counted(
    upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert connections.IDLE_S == 75
    monkeypatch.setattr(connections, "IDLE_S", 0.3)
    async with serving(make_instance(upstream)) as served, connected(served) as streams:
        await answered(streams)
        assert await count(served) == 2  # and the one that asks
        assert await streams[0].read() == b""
        await served.session.get(f"{served.url}/health/live")
        await until(lambda: served.gateway.meter is None or served.gateway.meter.connections() <= 1)


@pytest.mark.proves("F72")
async def test_the_oldest_idle_connections_make_room(upstream: FakeUpstream) -> None:
    async with serving(make_instance(upstream)) as served, AsyncExitStack() as stack:
        served.gateway.drain.places = 4

        async def connect() -> Streams:
            return await stack.enter_async_context(connected(served))

        upstream.script(Reply(hang=True))
        busy = await connect()
        busy[1].write(asking())
        await until(lambda: upstream.open == 1)
        new = await connect()  # it has not asked yet
        idle = [await connect(), await connect()]
        for streams in (idle[1], idle[0]):  # the second is idle for longer
            await answered(streams)
        await answered(await connect())
        assert await idle[1][0].read() == b""
        assert not idle[0][0].at_eof()
        await answered(idle[0])
        await answered(new)
        assert upstream.open == 1  # the busy one goes on


async def test_every_idle_connection_gives_way_to_a_new_one(upstream: FakeUpstream) -> None:
    async with serving(make_instance(upstream)) as served, AsyncExitStack() as stack:
        served.gateway.drain.places = 20
        for _ in range(4):
            crowd = [await stack.enter_async_context(connected(served)) for _ in range(20)]
            await asyncio.gather(*map(answered, crowd))
        assert upstream.hits() == 80


@pytest.mark.proves("F65")
async def test_if_none_is_idle_new_connections_are_refused_in_both_dialects(
    upstream: FakeUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    upstream.default = Reply(hang=True)
    async with serving(make_instance(upstream)) as served, AsyncExitStack() as stack:
        served.gateway.drain.places = 1
        _, writer = await stack.enter_async_context(connected(served))
        writer.write(asking())
        await until(lambda: upstream.open == 1)
        new = [await stack.enter_async_context(connected(served)) for _ in range(9)]
        for number, (reader, writer) in enumerate(new):
            if number < connections.MOST_SURPLUS:  # the others are not asked what they want
                writer.write(asking())
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nRetry-After: 1\r\n" in head
            error = json.loads(body)
            assert error["type"] == "error"
            assert error["error"]["type"] == "overloaded_error"
            assert error["error"]["code"] == "overloaded"
        assert upstream.open == 1  # the first goes on
    assert caplog.text.count("refusing connections with 503") == 1
