"""Callers that send invalid HTTP, or hold a connection open without using it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from itertools import product
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from endpoints import Able
from fakes import HELLO, Served, make_instance, serving
from intruder import raw, request
from raw import CHAT, asking, connected, exchange
from waiting import until_async

from nexus_gateway.routing.breaker import State
from nexus_gateway.settings import Settings
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream
from nexus_gateway.web import connections
from nexus_gateway.web import request as requests
from nexus_gateway.web.gateway import GATEWAY

BODY = CHAT % b"false"
START = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
IN_CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
GET = b"GET %b HTTP/1.1\r\nHost: x\r\n%b\r\n"

INVALID_HTTP = {
    "noise": b"\x00\x01\x02\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 50,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/1.2": b"GET /health HTTP/1.2\r\nHost: x\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two hosts": GET % (b"/health", b"Host: y\r\n"),
    "an invalid port": GET % (b"http://x:99999999/health", b""),
    "NUL in the path": GET % (b"/he\0alth", b""),
    "NUL in a field": GET % (b"/health", b"X: a\0b\r\n"),
    "a control character": GET % (b"/health", b"X-Routing-Mode: a\x01b\r\n"),
    "a bare CR": GET % (b"/health", b"X: a\rX-Request-Id: b\r\n"),
    "bare LFs": START.replace(b"\r", b"") + LENGTH.replace(b"\r", b"") + b"\n" + BODY,
    "a folded line": START + b"X: a\r\n b\r\n" + LENGTH + b"\r\n" + BODY,
    "a folded coding": START + b"Transfer-Encoding:\r\n chunked\r\n\r\n" + IN_CHUNKS,
    "a space before the colon": START + b"Transfer-Encoding : chunked\r\n\r\n" + IN_CHUNKS,
    "a space in a name": START + b"X Y: a\r\n" + LENGTH + b"\r\n" + BODY,
    "no colon": START + b"XY\r\n" + LENGTH + b"\r\n" + BODY,
    "the same length twice": START + LENGTH * 2 + b"\r\n" + BODY,
    "two lengths": START + LENGTH + b"Content-Length: 5\r\n\r\n" + BODY,
    "a list of lengths": START + b"Content-Length: 59, 59\r\n\r\n" + BODY,
    "a length with a sign": START + b"Content-Length: +59\r\n\r\n" + BODY,
    "a negative length": START + b"Content-Length: -1\r\n\r\n" + BODY,
    "a hexadecimal length": START + b"Content-Length: 0x10\r\n\r\n" + BODY,
    "a length with a grouping": START + b"Content-Length: 5_9\r\n\r\n" + BODY,
    "a length beyond 64 bits": START + b"Content-Length: 99999999999999999999999\r\n\r\n" + BODY,
    "a length and chunks": START + LENGTH + CHUNKED + b"\r\n" + IN_CHUNKS,
    "chunks and a length": START + CHUNKED + LENGTH + b"\r\n" + IN_CHUNKS,
    "an unknown coding": START + b"Transfer-Encoding: xchunked\r\n\r\n" + IN_CHUNKS,
    "two codings": START + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + IN_CHUNKS,
    "a coding after the chunks": START + b"Transfer-Encoding: chunked, gzip\r\n\r\n" + IN_CHUNKS,
    "chunks twice": START + CHUNKED * 2 + b"\r\n" + IN_CHUNKS,
    "a coding with a tab": START + b"Transfer-Encoding: \x0bchunked\r\n\r\n" + IN_CHUNKS,
    "chunks in HTTP/1.0": START.replace(b"1.1", b"1.0") + CHUNKED + b"\r\n" + IN_CHUNKS,
    "an invalid size": START + CHUNKED + b"\r\nzz\r\n" + BODY,
    "a negative size": START + CHUNKED + b"\r\n-1\r\n" + BODY,
    "a size with a prefix": START + CHUNKED + b"\r\n0x5\r\nhello\r\n0\r\n\r\n",
    "a size beyond 64 bits": START + CHUNKED + b"\r\n" + b"f" * 18 + b"\r\n",
    "a chunk longer than its size": START + CHUNKED + b"\r\n5\r\nhello!!\r\n0\r\n\r\n",
    "chunks with bare LFs": START + CHUNKED + b"\r\n5\nhello\n0\n\n",
    "noise behind a request": asking() + b"\0\0\r\n\r\n",
}
TOO_LARGE = {
    "a field": START + b"X: " + b"a" * 9000 + b"\r\n\r\n",
    "a field without end": START + b"X: " + b"a" * 30_000,
    "an address": GET % (b"/" + b"a" * 9000, b""),
}
SERVED = {
    "as usual": (asking(), [200]),
    "in chunks": (START + CHUNKED + b"\r\n" + IN_CHUNKS, [200]),
    "chunks with extensions": (
        START + CHUNKED + b"\r\n%x;a=b\r\n%b\r\n0\r\nX: y\r\n\r\n" % (len(BODY), BODY),
        [200],
    ),
    "HTTP/1.0": (asking().replace(b"1.1", b"1.0"), [200]),
    "three in a row": (asking() * 3, [200, 200, 200]),
    "a surplus": (asking() + b"GET /hea", [200]),
    "on request": (asking(b"Expect: 100-continue"), [100, 200]),
    "an unknown expectation": (asking(b"Expect: magic"), [417]),
    "an unsupported upgrade": (asking(b"Connection: upgrade", b"Upgrade: h2c"), [200]),
    "an invalid type": (asking(b"Content-Type: ;;;="), [200]),
    "no such path": (GET % (b"/%zz/%ff", b""), [404]),
    "a tunnel": (b"CONNECT evil:443 HTTP/1.1\r\nHost: x\r\n\r\n", [404]),
    "compressed": (asking(b"Content-Encoding: gzip"), [415]),
    "2 GiB announced": (START + b"Content-Length: 2147483648\r\n\r\n" + BODY, [413]),
    "2 GiB with an expectation": (
        START + b"Expect: 100-continue\r\nContent-Length: 2147483648\r\n\r\n",
        [413],
    ),
    "an unknown mode": (asking(b"X-Routing-Mode: smart, fastest"), [400]),
    "200 fields": (asking(*(b"X-%d: a" % n for n in range(200))), [400]),
}


def error_of(answer: bytes) -> Any:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"Content-Type: application/json" in head
    assert b"X-Request-Id: req-" in head
    assert b"aiohttp" not in head
    return json.loads(body)["error"]


@pytest.mark.proves("F36", "F35", "S-15")
async def test_invalid_http_is_rejected_and_its_connection_closed(
    upstream: FakeUpstream,
) -> None:
    async with serving(make_instance(upstream), idle_timeout_ms=300) as served:
        for name, data in INVALID_HTTP.items():
            seen = await exchange(served, data)
            assert (seen.statuses, seen.closed) == ([400], True), name
            assert error_of(seen.data)["code"] == "bad_http", name
        for name, data in TOO_LARGE.items():
            seen = await exchange(served, data)
            assert (seen.statuses, seen.closed) == ([431], True), name
            assert "longer than 8 KB" in error_of(seen.data)["message"]
        assert (await served.health())["inFlightRequests"] == 0
    assert upstream.hits() == 0


@pytest.mark.proves("F32", "F35", "F36")
@pytest.mark.usefixtures("each_way")
async def test_unusual_but_valid_http_gets_its_status(upstream: FakeUpstream) -> None:
    async with serving(make_instance(upstream)) as served:
        exchanges = (
            exchange(served, data, answers=len(statuses)) for data, statuses in SERVED.values()
        )
        for (name, (_, statuses)), seen in zip(
            SERVED.items(), await asyncio.gather(*exchanges), strict=True
        ):
            assert seen.statuses == statuses, name
        assert (await exchange(served, b"GET /health\r\n\r\n")).closed  # HTTP/0.9
        assert (await served.health())["inFlightRequests"] == 0


@pytest.mark.proves("F36")
@pytest.mark.parametrize("path", [b"/v1/chat/completions", b"/v1/audio/transcriptions"])
async def test_an_invalid_later_chunk_is_rejected_at_once(
    upstream: FakeUpstream, path: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    kind = b"Content-Type: multipart/form-data; boundary=XbX\r\n"
    start = START.replace(b"/v1/chat/completions", path) + kind + CHUNKED + b"\r\n"
    async with serving(make_instance(upstream)) as served, connected(served) as (reader, writer):
        writer.write(start + b"5\r\n--XbX\r\n")
        await asyncio.sleep(0.05)
        writer.write(b"zz\r\n")
        seen = await asyncio.wait_for(reader.read(), 30)  # until it is closed
        assert seen.startswith(b"HTTP/1.1 400 ")
        assert json.loads(seen.split(b"\r\n\r\n")[1])["error"]["code"] == "bad_http"
        assert served.gateway.drain.in_flight == 0
    assert not [r for r in caplog.records if "Unhandled" in r.message]


@pytest.mark.proves("F32")
async def test_endless_chunks_are_rejected_at_the_limit(upstream: FakeUpstream) -> None:
    async with (
        serving(make_instance(upstream), max_body_mb=1) as served,
        connected(served) as (reader, writer),
    ):
        writer.write(START + CHUNKED + b"\r\n")
        piece = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        for _ in range(17):
            writer.write(piece)
        assert (await asyncio.wait_for(reader.readline(), 30)).startswith(b"HTTP/1.1 413 ")


@pytest.mark.proves("F35")
@pytest.mark.usefixtures("each_way")
async def test_no_text_of_a_body_becomes_a_header(upstream: FakeUpstream) -> None:
    body = {"model": "fake/a\r\nX-Evil: 1", "messages": [{"role": "user", "content": "x"}]}
    async with serving(make_instance(upstream)) as served:
        for stream in (True, False):
            payload = json.dumps({**body, "stream": stream}).encode()
            seen = await exchange(served, asking(body=payload), answers=1)
            assert seen.statuses == [200]
            assert b"\nX-Evil" not in seen.data.split(b"\r\n\r\n")[0]
            assert upstream.requests[-1].body["model"] == "a\r\nX-Evil: 1"


UNUSUAL_JSON = {
    "NUL": (b'"a\\u0000b"', "a\0b"),
    "a lone pair": (b'"\\ud83d\\ude00"', "\U0001f600"),
    "the same key twice": (b'{"a":1,"a":2}', {"a": 2}),
    "a byte order mark": (b'"\xef\xbb\xbf"', "\ufeff"),
}


@pytest.mark.proves("F34", "S-22")
@pytest.mark.usefixtures("each_way")
async def test_the_upstream_receives_the_values_that_were_parsed(upstream: FakeUpstream) -> None:
    async with serving(make_instance(upstream)) as served:
        for name, (text, value) in UNUSUAL_JSON.items():
            seen = await exchange(served, asking(body=BODY[:-1] + b',"x":%b}' % text), answers=1)
            assert seen.statuses == [200], name
            assert upstream.requests[-1].body["x"] == value, name
            assert upstream.requests[-1].raw.count(b'"a"') < 2


@pytest.mark.usefixtures("each_way")
async def test_a_stream_in_http_1_0_ends_with_its_connection(upstream: FakeUpstream) -> None:
    async with serving(make_instance(upstream)) as served:
        seen = await exchange(served, asking(stream=True).replace(b"1.1", b"1.0"))
    head, _, body = seen.data.partition(b"\r\n\r\n")
    assert (seen.statuses, seen.closed) == ([200], True)
    assert b"Transfer-Encoding" not in head
    assert body.startswith(b"data: {")
    assert body.endswith(b"data: [DONE]\n\n")


@pytest.fixture
def short_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.2)
    monkeypatch.setattr(connections, "LINGER_S", 0.1)


@pytest.mark.proves("F33")
@pytest.mark.usefixtures("short_heads")
async def test_incomplete_heads_time_out_and_disturb_no_other_caller(
    upstream: FakeUpstream,
) -> None:
    async with serving(make_instance(upstream), idle_timeout_ms=200) as served:
        port = int(served.url.rsplit(":", 1)[1])
        slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(200)]
        for _, writer in slow[150:]:
            writer.write(START + b"Content-Length: 99\r\n\r\n{")  # and no more of the body
        for _ in range(3):
            for _, writer in slow[:100]:  # the next fifty send nothing at all
                writer.write(b"GET / HTTP/1.1\r\nX-Y: z")
            assert (await served.chat())[0] == 200
        for reader, writer in slow:
            with contextlib.suppress(ConnectionError):
                await asyncio.wait_for(reader.read(), 30)
            writer.transport.abort()


@pytest.mark.proves("F33")
@pytest.mark.usefixtures("short_heads")
async def test_the_head_timeout_applies_to_each_request(upstream: FakeUpstream) -> None:
    async with serving(make_instance(upstream)) as served:
        async with connected(served) as (reader, writer):
            writer.write(asking())
            await asyncio.wait_for(reader.read(2**16), 30)
            await asyncio.sleep(0.4)
            writer.write(asking())  # after a pause, on the same connection
            assert await asyncio.wait_for(reader.read(2**16), 30)
            writer.write(b"GET / HTTP/1.1\r\nX:")
            assert await asyncio.wait_for(reader.read(), 30) == b""
        async with connected(served) as (reader, writer):
            begun, rest = asking()[:20], asking()[20:]
            writer.write(begun)
            await asyncio.sleep(0.1)
            writer.write(rest[:-10])
            await asyncio.sleep(0.3)  # in the body, which has its own limits
            writer.write(rest[-10:])
            assert (await asyncio.wait_for(reader.readline(), 30)).startswith(b"HTTP/1.1 200 ")


class Caller(connections.ClientConnection):
    """A connection whose head never ends; records when it is let go."""

    closed_at: float | None = None

    def force_close(self) -> None:
        self.closed_at = self.closed_at or asyncio.get_running_loop().time()


class VirtualLoop:
    """Runs one timer, without waiting."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay_s: float, call: Callable[..., None], *args: Any) -> None:
        self.timers.append((self.now + delay_s, partial(call, *args)))

    def run_next(self) -> None:
        self.now, call = self.timers.pop()
        call()


@pytest.mark.parametrize("write_timeout_ms", [1_000, 10_000, 60_000, 86_400_000])
@pytest.mark.parametrize("begun_s", [0.0, 0.01, 1.0, 3.7, 29.9])
def test_a_head_that_never_ends_is_let_go_within_half_a_minute(
    monkeypatch: pytest.MonkeyPatch, write_timeout_ms: int, begun_s: float
) -> None:
    loop = VirtualLoop()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    runner, caller = object.__new__(connections.Runner), object.__new__(Caller)
    settings = Settings(write_timeout_ms=write_timeout_ms)
    runner._app = {GATEWAY: SimpleNamespace(settings=settings)}  # type: ignore[assignment]
    caller._wire, caller._paused, caller._unsent, caller._taken_at = Wire(), False, 0, 0.0
    caller.head_since = begun_s
    runner._check(SimpleNamespace(connections=[caller]))  # type: ignore[arg-type]
    while caller.closed_at is None:
        loop.run_next()

    assert 25 < caller.closed_at - begun_s <= 30


LONG = Reply(text="word " * 10 + "x" * 6_000_000)


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> asyncio.Semaphore:
    """Count the connections that the gateway has lost."""
    gone = asyncio.Semaphore(0)
    original = connections.ClientConnection.connection_lost

    def count(self: connections.ClientConnection, error: BaseException | None) -> None:
        original(self, error)
        gone.release()

    monkeypatch.setattr(connections.ClientConnection, "connection_lost", count)
    return gone


@pytest.mark.proves("F30", "F31", "I-38")
@pytest.mark.usefixtures("each_way")
async def test_a_caller_that_reads_nothing_is_disconnected(
    upstream: FakeUpstream, lost: asyncio.Semaphore
) -> None:
    upstream.default = LONG
    instance = make_instance(upstream)
    async with serving(instance, write_timeout_ms=200) as served, AsyncExitStack() as stack:
        for stream, half_closed in product((True, False), repeat=2):
            reader, writer = await stack.enter_async_context(connected(served, 1024))
            writer.write(asking(stream=stream))
            await asyncio.wait_for(reader.readexactly(20), 30)
            if half_closed:
                writer.write_eof()
        async with asyncio.timeout(30):
            for _ in range(4):
                await lost.acquire()
        assert await served.gateway.drain.wait(2)
        assert instance.in_flight == 0
        assert instance.default.breaker.state() is State.CLOSED
        assert instance.health.success_rate() in (None, 1)


@pytest.mark.proves("I-38")
@pytest.mark.usefixtures("each_way")
async def test_a_caller_that_reads_slowly_stays_connected(upstream: FakeUpstream) -> None:
    upstream.default = LONG
    async with (
        serving(make_instance(upstream), write_timeout_ms=200) as served,
        connected(served, 1024) as (reader, writer),
    ):
        writer.write(asking(stream=True))
        size, tail = 0, b""
        while b"0\r\n\r\n" not in tail:
            piece = await asyncio.wait_for(reader.read(400_000), 30)
            assert piece
            size, tail = size + len(piece), (tail + piece)[-20:]
            if size < 5_000_000:
                await asyncio.sleep(0.04)
        assert size > 6_000_000


class Wire:
    """A transport whose write buffer has always the same size."""

    aborted = False

    def get_write_buffer_size(self) -> int:
        return 100

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        self.aborted = True


@pytest.mark.proves("I-38")
def test_a_caller_that_reads_as_fast_as_is_written_stays_connected() -> None:
    caller, wire = object.__new__(connections.ClientConnection), Wire()
    caller._wire, caller._unsent, caller._taken_at = wire, 0, 0.0
    caller.head_since, caller._paused, caller._drain_waiter = None, True, None
    for now in range(20):
        caller.check_timeouts(now, head_s=60, write_s=5)
        caller.resume_writing()
        caller.pause_writing()
    assert not wire.aborted
    for now in range(20, 30):
        caller.check_timeouts(now, head_s=60, write_s=5)
    assert wire.aborted


@pytest.mark.proves("I-40")
@pytest.mark.usefixtures("each_way")
async def test_a_request_over_the_limit_is_rejected_before_its_body_is_read(
    upstream: FakeUpstream,
) -> None:
    upstream.default = Reply(hang_after=1)
    async with serving(make_instance(upstream), max_concurrent=2) as served:
        url = served.url + "/v1/chat/completions"
        body = {"stream": True, "messages": [{"role": "user", "content": "x"}]}
        async with served.session.post(url, json=body), served.session.post(url, json=body):
            seen = await exchange(served, START + b"Content-Length: 99999\r\n\r\n{", answers=1)
            assert seen.statuses == [503]
            assert b"Retry-After: 1\r\n" in seen.data
            assert b"x-should-retry: true\r\n" in seen.data
            assert b'"overloaded"' in seen.data
            assert (await served.health())["inFlightRequests"] == 2
        upstream.default = Reply()
        async with asyncio.timeout(30):
            while (await served.chat())[0] != 200:
                pass
    async with serving(make_instance(upstream), max_concurrent=0) as served:
        assert (await served.chat())[0] == 200


FORM = b"Content-Type: multipart/form-data; boundary=XbX\r\n"
MODEL = b'--XbX\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
FILE = b'--XbX\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
PATHS = {
    "chat": (START, b'{"messages": "'),
    "form": (START.replace(b"chat/completions", b"audio/transcriptions") + FORM, MODEL),
    "file": (START.replace(b"chat/completions", b"audio/transcriptions") + FORM, MODEL + FILE),
}


async def dribble(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes
) -> asyncio.Task[bytes]:
    """Send a body byte by byte, until it is sent or answered."""
    answer = asyncio.create_task(reader.readline())
    for byte in body:
        writer.write(bytes([byte]))
        await asyncio.wait([answer], timeout=0.01)
        if answer.done():
            break
    return answer


@pytest.mark.parametrize("path", PATHS)
async def test_a_body_needs_a_minimum_rate(
    upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(requests, "GRACE_S", 0.2)
    head, begin = PATHS[path]
    instance = make_instance(upstream, provider=Able)
    async with serving(instance) as served, connected(served) as (reader, writer):
        writer.write(head + b"Content-Length: 9999\r\n\r\n" + begin)
        answer = await dribble(reader, writer, b"x" * 9000)

        assert (await answer).startswith(b"HTTP/1.1 408 ")
    assert instance.default.breaker.state() is State.CLOSED
    assert instance.default.last_reason is None


async def test_a_body_at_that_rate_is_taken_for_as_long_as_it_needs(
    upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "GRACE_S", 0.2)
    monkeypatch.setattr(requests, "LEAST_RATE", 1.0)
    async with serving(make_instance(upstream)) as served, connected(served) as (reader, writer):
        writer.write(START + LENGTH + b"\r\n")
        answer = await dribble(reader, writer, BODY)

        assert (await answer).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("path", PATHS)
async def test_a_body_takes_a_place_only_when_it_has_arrived(
    upstream: FakeUpstream, path: str
) -> None:
    head, begin = PATHS[path]
    able = make_instance(upstream, provider=Able)
    async with serving(able, max_concurrent=1) as served, AsyncExitStack() as stack:
        slow = [await stack.enter_async_context(connected(served)) for _ in range(5)]
        for _, writer in slow:
            writer.write(head + b"Content-Length: 9999\r\n\r\n" + begin.removesuffix(FILE))
        await until_async(lambda: in_flight(served, 5))
        assert (await served.chat())[0] == 200

        upstream.default = Reply(hang_after=1)
        begun = {**HELLO, "stream": True}
        async with served.session.post(f"{served.url}/v1/chat/completions", json=begun) as answer:
            assert answer.status == 200
            reader, writer = slow[0]
            writer.write((FILE + b"x" if MODEL in begin else b'"}').ljust(9999 - len(begin)))
            assert (await asyncio.wait_for(reader.readline(), 30)).startswith(b"HTTP/1.1 503 ")


async def in_flight(served: Served, number: int) -> bool:
    return bool((await served.health())["inFlightRequests"] == number)


async def test_an_unknown_aiohttp_version_serves_without_timeouts(
    upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connections, "_USED", ("no_such_thing",))
    async with serving(make_instance(upstream)) as served:
        assert (await served.chat())[0] == 200
    assert f"aiohttp {aiohttp.__version__} is not as expected" in caplog.text


def test_this_aiohttp_has_the_attributes_in_use() -> None:
    for name in (*connections._USED, "handle_error", "force_close", "data_received"):
        assert hasattr(web.RequestHandler, name), name


@pytest.mark.proves("I-59")
async def test_an_error_outside_the_handlers_has_openais_shape(
    upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("internal detail")

    async with serving(make_instance(upstream)) as served:
        monkeypatch.setattr("nexus_gateway.web.middleware.authenticate", fail)
        monkeypatch.setattr("nexus_gateway.web.middleware.request_id", fail)
        seen = await exchange(served, asking())
        assert (seen.statuses, seen.closed) == ([500], True)
        assert error_of(seen.data)["code"] == "internal_error"
        assert b"internal detail" not in seen.data
        monkeypatch.undo()
        assert (await served.chat())[0] == 200


UNKNOWN = ["foo", "100-continue, foo", "\xff", "200-ok"]


@pytest.mark.proves("S-14")
@pytest.mark.parametrize("expectation", UNKNOWN)
@pytest.mark.parametrize("line", ["GET /health", "POST /v1/chat/completions"])
async def test_an_unknown_expectation_is_a_417(
    upstream: FakeUpstream, line: str, expectation: str
) -> None:
    async with serving(make_instance(upstream)) as served:
        sent = request(line, f"Expect: {expectation}", body=b"{}")
        status, _, body = await raw(served.url, sent)
        assert (status, json.loads(body)["error"]["code"]) == (417, "unknown_expectation")
        assert (await served.chat())[0] == 200


@pytest.mark.proves("S-14")
async def test_an_unknown_expectation_without_a_route_is_no_failure(
    upstream: FakeUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(make_instance(upstream)) as served:
        for expectation in UNKNOWN:
            sent = request("GET /nowhere", f"Expect: {expectation}")
            assert (await raw(served.url, sent))[0] == 417
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.proves("S-14")
@pytest.mark.parametrize("version", [" HTTP/0.9", " HTTP/2.0", ""])
async def test_another_version_of_http_is_refused(upstream: FakeUpstream, version: str) -> None:
    async with serving(make_instance(upstream)) as served:
        sent = f"GET /v1/models{version}\r\nHost: localhost\r\n\r\n".encode()
        status, _, _ = await raw(served.url, sent)
        assert status in (400, 505)
