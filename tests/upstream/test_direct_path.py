"""The direct path: bytes from transport to transport, on connections of aiohttp's pool."""

from __future__ import annotations

import asyncio
import gzip
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from inspect import signature
from typing import cast

import aiohttp
import pytest
import trustme
from fakes import HELLO, Fake, make_instance, serving
from raw import BODY, EVENT, FINISH, HEAD, Wire, chunked, listening
from waiting import until

from nexus_gateway.testing.gateway import Served
from nexus_gateway.upstream import direct
from nexus_gateway.upstream.direct import BorrowedConnection

STREAM = {**HELLO, "stream": True}


@asynccontextmanager
async def gateway(wire: Wire, **settings: int) -> AsyncIterator[Served]:
    async with listening(wire) as url, serving(make_instance(url), **settings) as served:
        yield served


async def chat(served: Served, body: dict[str, object] = STREAM) -> tuple[int, bytes]:
    async with served.session.post(f"{served.url}/v1/chat/completions", json=body) as response:
        return response.status, await response.read()


GOOD = HEAD + b"\r\n" + chunked(BODY)
EXPECTED = BODY.replace(b'"m"', b'"Fake (Key #1)"')


@pytest.fixture
def direct_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable the other path, so that no test passes because of it."""

    async def none(*args: object, **how: object) -> None:
        raise AssertionError("the direct path was not used")

    monkeypatch.setattr("nexus_gateway.upstream.client.Client._via_aiohttp", none)


@pytest.mark.usefixtures("direct_only")
async def test_a_connection_is_reused() -> None:
    wire = Wire(GOOD)
    async with gateway(wire) as served:
        for _ in range(4):
            assert await chat(served) == (200, EXPECTED)
    assert (wire.connections, wire.served) == (1, 4)


@pytest.mark.usefixtures("direct_only")
@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b"Connection: close\r\n\r\n" + chunked(BODY),
        GOOD + b"HTTP/1.1 200 OK\r\n",
        GOOD + b"x",
    ],
    ids=["connection: close", "another response follows", "an extra byte"],
)
async def test_a_connection_is_not_reused_after_a_close_or_extra_bytes(answer: bytes) -> None:
    wire = Wire(answer)
    async with gateway(wire) as served:
        for _ in range(3):
            assert await chat(served) == (200, EXPECTED)
    assert wire.connections == 3


@pytest.mark.proves("F45")
@pytest.mark.usefixtures("direct_only")
@pytest.mark.parametrize("defect", ["closed", "an unsolicited response"])
async def test_a_broken_idle_connection_is_not_used(defect: str) -> None:
    wire = Wire(GOOD)
    async with gateway(wire) as served:
        assert await chat(served) == (200, EXPECTED)
        if defect == "closed":
            wire.writers[0].close()
        else:
            wire.writers[0].write(GOOD)
        await asyncio.sleep(0.05)
        assert await chat(served) == (200, EXPECTED)
    assert wire.connections == 2


@pytest.mark.proves("F47")
@pytest.mark.usefixtures("direct_only")
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n%b"
        % (len(BODY), BODY),
        b"HTTP/1.1 100 Continue\r\n\r\n" + GOOD,
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n" + BODY,
        b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + BODY,
        HEAD + b"Content-Encoding: gzip\r\n\r\n" + chunked(gzip.compress(BODY)),
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX: a\r\n b\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY),
    ],
    ids=["a length", "100 first", "until the end", "HTTP/1.0", "gzip", "a folded line"],
)
@pytest.mark.parametrize("bytewise", [False, True])
async def test_a_response_is_read_in_any_framing(
    answer: bytes, bytewise: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if bytewise:
        take = direct.DirectResponse.data_received

        def each_byte(self: direct.DirectResponse, data: bytes) -> None:
            for at in range(len(data)):
                receiver = self._transport.get_protocol()
                byte = data[at : at + 1]
                take(self, byte) if receiver is self else receiver.data_received(byte)

        monkeypatch.setattr(direct.DirectResponse, "data_received", each_byte)
    async with gateway(Wire(answer)) as served:
        assert await chat(served) == (200, EXPECTED)


@pytest.mark.usefixtures("direct_only")
async def test_an_error_is_read_by_aiohttp_and_its_connection_is_reused() -> None:
    limited = (
        b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\nContent-Type: application/json\r\n"
        b"Content-Length: 2\r\n\r\n{}"
    )
    wire = Wire(limited)
    async with (
        gateway(wire) as served,
        served.session.post(f"{served.url}/v1/chat/completions", json=STREAM) as response,
    ):
        assert response.status == 429
        assert response.headers["Retry-After"] == "7"


@pytest.mark.proves("F18", "I-31")
@pytest.mark.usefixtures("direct_only")
@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b"\r\n" + chunked(BODY)[:120],
        HEAD + b"\r\n" + chunked(BODY)[:300] + b"zz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 500\r\n\r\n"
        + BODY[:200],
    ],
    ids=["cut in a chunk", "a broken size", "shorter than its length"],
)
async def test_a_broken_response_ends_with_an_error_event(answer: bytes) -> None:
    wire = Wire(answer)
    async with gateway(wire, idle_timeout_ms=200) as served:
        status, data = await chat(served)
    assert status == 200
    assert b"one " in data
    assert b'"error"' in data
    assert b"[DONE]" not in data


async def test_the_direct_path_works_over_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server_context)
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)
    monkeypatch.setattr(aiohttp.connector, "_SSL_CONTEXT_VERIFIED", client_context)
    wire = Wire(GOOD)
    async with listening(wire, server_context) as url, serving(make_instance(url)) as served:
        for _ in range(3):
            assert await chat(served) == (200, EXPECTED)
    assert wire.connections == 1


class Flood(Wire):
    """Send a long response as fast as it is read."""

    chunk = chunked(EVENT % (b"x" * 60_000) + b"\n\n", 70_000)[: -len(b"0\r\n\r\n")]
    chunks = 400

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + b"\r\n")
        for _ in range(self.chunks):
            writer.write(self.chunk)
            await writer.drain()
            self.sent += 1
        writer.write(chunked(FINISH + b"\n\ndata: [DONE]\n\n"))
        await writer.drain()


@pytest.mark.proves("F25", "F31", "I-38")
@pytest.mark.usefixtures("each_way")
async def test_a_caller_that_does_not_read_pauses_only_its_own_upstream() -> None:
    flood = Flood(b"")
    async with gateway(flood) as served:
        host, port = served.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        body = b'{"stream":true,"messages":[{"role":"user","content":"x"}]}'
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
        writer.write(head % len(body) + body)
        await asyncio.wait_for(reader.readexactly(100), 30)
        before = -1
        while flood.sent != before:  # until it stops
            before = flood.sent
            await asyncio.sleep(0.2)
        assert flood.sent < flood.chunks * 0.8

        async with served.session.get(f"{served.url}/health") as response:
            assert response.status == 200

        size, tail = 0, b""
        while b"\r\n0\r\n\r\n" not in tail:
            piece = await asyncio.wait_for(reader.read(1 << 20), 30)
            assert piece
            size, tail = size + len(piece), (tail + piece)[-200:]
        assert b"[DONE]" in tail
        assert size > flood.chunks * 60_000
        writer.close()


ERROR = b'data: {"error":{"message":"overloaded"}}'


@pytest.mark.proves("F16")
@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("more", [b"data: [DONE]\n\n", FINISH + b"\n\ndata: [DONE]\n\n", b""])
async def test_an_error_after_the_first_events_in_one_read_fails_over(more: bytes) -> None:
    first = b"\n\n".join([EVENT % b"one ", EVENT % b"two ", ERROR, b""])
    bad = Wire(HEAD + b"\r\n" + chunked(first + more, 1000))
    good = Wire(GOOD)
    async with listening(bad) as first_url, listening(good) as second_url:
        instances = make_instance(first_url), make_instance(second_url, 2)
        async with serving(*instances) as served:
            for _ in range(4):
                status, data = await chat(served)
                assert status == 200
                assert b"error" not in data
                assert data.endswith(b"[DONE]\n\n")
    assert good.served == 4


@pytest.mark.usefixtures("each_way")
async def test_an_event_without_its_blank_line_still_ends_the_stream() -> None:
    start = b'event: message_start\ndata: {"type":"message_start","message":{"usage":{}}}\n\n'
    delta = (
        b"event: content_block_delta\n"
        b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"x"}}'
    )

    class Native(Fake):
        endpoints = {"messages": "/messages"}

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + b"\r\n" + chunked(start + delta + b"\n\n")[: -len(b"0\r\n\r\n")])
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(chunked(delta))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    async with server, serving(make_instance(url, provider=Native)) as served:
        body = {**STREAM, "max_tokens": 9, "model": "fake-large"}
        async with (
            asyncio.timeout(30),
            served.session.post(f"{served.url}/v1/messages", json=body) as response,
        ):
            data = await response.read()
        assert b"error" in data
        assert served.gateway.drain.in_flight == 0


class Stub:
    """A connection of aiohttp's pool and its transport, as a `BorrowedConnection` uses them."""

    def __init__(self, unsent: int) -> None:
        self.get_write_buffer_size = lambda: unsent
        self.is_closing = lambda: False
        self.set_protocol = lambda protocol: None
        self.done: list[str] = []
        self.release = lambda: self.done.append("release")
        self.close = lambda: self.done.append("close")


@pytest.mark.parametrize(("unsent", "done"), [(0, "release"), (1, "close")])
def test_a_connection_with_an_unsent_request_is_not_reused(unsent: int, done: str) -> None:
    stub = Stub(unsent)
    BorrowedConnection(stub, stub, cast(asyncio.Transport, stub), None).give_back(reusable=True)
    assert stub.done == [done]


@pytest.mark.proves("F31", "I-38")
async def test_unread_responses_do_not_accumulate() -> None:
    completion = b'{"choices":[{"message":{"content":"%b"}}]}' % (b"x" * 1_000_000)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    wire = Wire(head % len(completion) + completion)
    async with gateway(wire) as served:
        host, port = served.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port), limit=1024)
        body = b'{"stream":false,"messages":[{"role":"user","content":"x"}]}'
        request = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b"
        writer.write(request % (len(body), body) * 60)
        await until(lambda: wire.served)
        before = -1
        while wire.served != before:
            before = wire.served
            await asyncio.sleep(0.2)
        assert 0 < wire.served < 30
        writer.close()


async def test_an_incompatible_aiohttp_is_used_by_its_session(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def incompatible(*args: object) -> None:
        raise AttributeError("connection_key")

    monkeypatch.setattr("nexus_gateway.upstream.client.request_to", incompatible)
    with caplog.at_level(logging.WARNING):
        async with gateway(Wire(GOOD)) as served:
            for _ in range(3):
                assert await chat(served) == (200, EXPECTED)
    assert [r.message for r in caplog.records if "direct path" in r.message] == [
        f"aiohttp {aiohttp.__version__} does not support the direct path: using its session"
    ]


def test_this_aiohttp_has_the_attributes_that_the_direct_path_needs() -> None:
    from aiohttp.client_proto import ResponseHandler
    from aiohttp.connector import Connection

    for name in ("connection_lost", "data_received", "read", "set_response_params", "should_close"):
        assert hasattr(ResponseHandler, name), name
    for name in ("close", "protocol", "release", "transport"):
        assert hasattr(Connection, name), name
    assert hasattr(aiohttp.ClientRequest, "connection_key")
    assert list(signature(aiohttp.BaseConnector._release).parameters) == [
        "self",
        "key",
        "protocol",
        "should_close",
    ]
    assert hasattr(aiohttp.web.RequestHandler, "writing_paused")
