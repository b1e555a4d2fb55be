"""Upstreams that break off, flood, mislead, or break the protocol."""

from __future__ import annotations

import asyncio
import gzip
import json
import resource
import socket
import sys
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fakes import HELLO, Fake, Other, make_instance, serving
from raw import BODY, EVENT, HEAD, Wire, chunked, listening

from nexus_gateway.routing.breaker import State
from nexus_gateway.secret import Secret
from nexus_gateway.testing.conformance.conversations import read_stream
from nexus_gateway.testing.gateway import Served
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream

pytestmark = pytest.mark.usefixtures("each_way")

GOOD = HEAD + b"\r\n" + chunked(BODY)
EXPECTED = BODY.replace(b'"m"', b'"Fake (Key #1)"')
COMPLETION = b'{"model":"m","choices":[{"index":0,"message":{"content":"one two"}}]}'
JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%b\r\n%b"
BODIES = {stream: {**HELLO, "stream": stream} for stream in (True, False)}
IN_TURN = {"X-Routing-Mode": "round-robin"}


class Endless(Wire):
    """Send the same data repeatedly until the connection is closed."""

    def __init__(self, start: bytes, again: bytes, pause_s: float = 0.0) -> None:
        super().__init__(b"")
        self.start, self.again, self.pause_s = start, again, pause_s
        self.closed = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        try:
            await reader.readuntil(b"\r\n\r\n")
            self.served += 1
            writer.write(self.start)
            while not reader.at_eof():
                writer.write(self.again)
                await writer.drain()
                self.sent += len(self.again)
                await asyncio.sleep(self.pause_s)
        except ConnectionError:
            pass
        finally:
            self.closed.set()
            writer.close()


def in_chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@asynccontextmanager
async def pair(first: Wire, second: Wire | None = None, **settings: Any) -> AsyncIterator[Served]:
    """A gateway with a hostile and a good upstream, chosen in turn."""
    async with listening(first) as bad, listening(second or Wire(GOOD)) as good:
        instances = make_instance(bad), make_instance(good, 2)
        async with serving(*instances, **settings) as served:
            yield served


async def ask(served: Served, stream: bool = True) -> tuple[int, bytes, Any]:
    url = served.url + "/v1/chat/completions"
    async with served.session.post(url, json=BODIES[stream], headers=IN_TURN) as response:
        return response.status, await response.read(), response.headers


UNUSUAL_FRAMINGS: dict[str, Callable[[bytes], bytes]] = {
    "CRLF": lambda b: b.replace(b"\n", b"\r\n"),
    "CR": lambda b: b.replace(b"\n", b"\r"),
    "a byte order mark": lambda b: b"\xef\xbb\xbf" + b,
    "no space": lambda b: b.replace(b"data: ", b"data:"),
    "two spaces": lambda b: b.replace(b"data: ", b"data:  "),
    "names": lambda b: b.replace(b"data: ", b"event: message\nid: 1\nretry: 9\ndata: "),
    "many lines": lambda b: b.replace(b',"choices"', b'\ndata: ,"choices"'),
    "comments": lambda b: b.replace(b"data: ", b": PROCESSING\n\n:\n\ndata: "),
    "events without data": lambda b: b.replace(
        b"data: ", b"retry: 10\n\nid: 5\n\nevent: ping\n\nid: 1\n: x\n\ndata\n\ndata:\n\ndata: "
    ),
    "blank lines": lambda b: b.replace(b"\n\n", b"\n\n\n\n\n"),
    "unknown fields": lambda b: b.replace(b"data: ", b"x-odd: 1\nodd\ndata: "),
    "no [DONE]": lambda b: b.replace(b"data: [DONE]\n\n", b""),
    "no end of the last line": lambda b: b.rstrip(b"\n"),
    "words after [DONE]": lambda b: b + EVENT % b"more" + b"\n\n",
}
TEXT = "Grüße, 世界 😀\u2028\u2029\x85\x0b\x0c\x1c.".replace("\x0b\x0c\x1c", "\\u000b")


@pytest.mark.proves("F23", "F24", "I-32", "I-36", "I-37")
@pytest.mark.parametrize("framing", UNUSUAL_FRAMINGS)
@pytest.mark.parametrize("size", [1, 100_000], ids=["byte by byte", "at once"])
async def test_the_text_is_the_same_in_any_framing(framing: str, size: int) -> None:
    body = BODY.replace(b"one ", TEXT.encode())
    wire = Wire(HEAD + b"\r\n" + chunked(UNUSUAL_FRAMINGS[framing](body), size))
    async with listening(wire) as url, serving(make_instance(url)) as served:
        _, data, _ = await ask(served)
    assert read_stream(data.decode()).text == json.loads(f'"{TEXT}"') + "two"
    assert data.count(b"[DONE]") == 1
    assert data.endswith(b"data: [DONE]\n\n")
    for event in data.removesuffix(b"\n\n").split(b"\n\n"):
        assert b"\n" not in event
        assert event.startswith((b"data: ", b":"))


BROKEN_BEFORE = {
    "an error": b'data: {"error":{"message":"overloaded","code":529}}\n\n',
    "a named error": b'event: error\ndata: {"error":{"message":"overloaded"}}\n\n',
    "an error as text": b'data: {"error":"overloaded"}\n\n',
    "an error in a code": b'data: {"error":{"code":"529","message":"slow down"}}\n\n',
    "garbage": b"data: {not json\n\n",
    "a list": b"data: [1]\n\n",
    "nothing": b"",
    "only comments": b": hello\n\n",
    "only the end": b"data: [DONE]\n\n",
    "a page": b"<html><body>502 Bad Gateway</body></html>",
    "what is not UTF-8": b'data: {"choices":[{"delta":{"content":"\xff\xfe"}}]}\n\n',
}


@pytest.mark.proves("F16", "F17", "F22", "I-30")
@pytest.mark.parametrize("broken", BROKEN_BEFORE)
async def test_a_break_before_the_first_content_fails_over(broken: str) -> None:
    wire = Wire(HEAD + b"\r\n" + chunked(BROKEN_BEFORE[broken] or b" ", 1000))
    async with pair(wire) as served:
        status, data, headers = await ask(served)
        assert (status, data) == (200, EXPECTED.replace(b"#1", b"#2"))
        assert headers["X-Nexus-Attempts"] == "2"
        assert served.instances[0].health.success_rate() == 0


@pytest.mark.proves("F17", "F27")
@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "answer",
    [
        JSON.replace(b"application/json", b"text/html") % (5, b"", b"<html"),
        JSON % (9, b"", b'{"error":1'),
        JSON % (0, b"", b""),
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /other\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 9\r\n\r\n{}",
    ],
    ids=[
        "a page",
        "an error",
        "nothing",
        "no content",
        "elsewhere",
        "elsewhere here",
        "an upgrade",
        "SSH",
        "TLS",
        "a head without end",
        "two lengths",
    ],
)
async def test_an_invalid_response_fails_over(answer: bytes, stream: bool) -> None:
    wire = Wire(answer)
    limits = {"first_token_timeout_ms": 600_000, "response_timeout_ms": 600_000}  # no case waits
    async with pair(wire, **limits, max_attempts=2 if stream else 1) as served:
        status, _, headers = await ask(served, stream)
        assert (status, headers["X-Nexus-Attempts"]) == ((200, "2") if stream else (503, "1"))
    assert wire.served == 1 or not stream


@pytest.mark.proves("F15", "I-35")
@pytest.mark.parametrize("again", [b": PROCESSING\n\n", b"retry: 1\n\n", b":\n", b"\n"])
async def test_endless_comments_do_not_count_as_content(again: bytes) -> None:
    wire = Endless(HEAD + b"\r\n", in_chunk(again), 0.01)
    async with pair(wire, first_token_timeout_ms=1000, idle_timeout_ms=1000) as served:
        status, data, _ = await ask(served)
        assert (status, data) == (200, EXPECTED.replace(b"#1", b"#2"))
        await asyncio.wait_for(wire.closed.wait(), 30)
        assert str(served.instances[0].default.last_reason).startswith("no first token in 1")


@pytest.mark.proves("F25", "I-38")
@pytest.mark.parametrize("again", [b"x" * 100_000, b": x\n\n" * 20_000], ids=["event", "comments"])
async def test_too_much_data_before_the_first_content_fails_over(again: bytes) -> None:
    wire = Endless(HEAD + b"\r\n" + in_chunk(b'data: {"choices":"'), in_chunk(again))
    async with pair(wire) as served:
        status, data, _ = await ask(served)
        assert (status, data) == (200, EXPECTED.replace(b"#1", b"#2"))
        await asyncio.wait_for(wire.closed.wait(), 30)
    assert wire.sent < 64 * 1024 * 1024


@pytest.mark.proves("F25", "I-38")
async def test_an_endless_event_after_the_first_content_breaks_the_stream() -> None:
    wire = Endless(
        HEAD + b"\r\n" + in_chunk(EVENT % b"one " + b"\n\ndata: "), in_chunk(b"x" * 99_999)
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with pair(wire) as served:
        status, data, _ = await ask(served)
        await asyncio.wait_for(wire.closed.wait(), 30)
        assert served.instances[0].in_flight == 0
    assert status == 200
    assert b"one " in data
    assert b"too large" in data
    assert b"[DONE]" not in data
    assert len(data) < 2000
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 100_000 or sys.platform != "linux"  # KiB


@pytest.mark.proves("F17", "S-16")
@pytest.mark.parametrize("length", [b"Content-Length: 99999999999\r\n\r\n", b"\r\n"])
async def test_an_endless_response_without_a_stream_fails_over(length: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
    wire = Endless(head + length + b'{"x":"', b"x" * 1_000_000)
    async with pair(wire, Wire(JSON % (len(COMPLETION), b"", COMPLETION))) as served:
        status, data, headers = await ask(served, stream=False)
        assert (status, headers["X-Nexus-Attempts"]) == (200, "2")
        assert json.loads(data)["model"] == "Fake (Key #2)"
        assert served.instances[0].default.last_reason == "sent too large an answer"
    assert wire.sent < 64 * 1024 * 1024


@pytest.mark.proves("F46")
@pytest.mark.parametrize("size", [100_000, 8_000_000])
async def test_a_response_before_the_request_was_read_is_used(size: int) -> None:
    error = b'{"error":{"message":"too long for me"}}'
    status = b"HTTP/1.1 413 Payload Too Large\r\nContent-Type: application/json\r\n"
    answer = status + b"Content-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(error), error)

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()  # with a reset, as what was sent is not read

    server = await asyncio.start_server(refuse, "127.0.0.1", 0, limit=1024)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    body = {"messages": [{"role": "user", "content": "x" * size}], "stream": True}
    async with server, serving(make_instance(url)) as served:
        for _ in range(3):
            status_of, text, _ = await served.chat(body)
            assert (status_of, "too long for me" in text) == (413, True)
        assert served.instances[0].default.breaker.state() is State.CLOSED
        assert served.instances[0].default.last_reason is None


def deflated(data: bytes) -> bytes:
    return zlib.compress(data)


@pytest.mark.proves("F47")
@pytest.mark.parametrize(("coding", "pack"), [(b"gzip", gzip.compress), (b"deflate", deflated)])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_compressed_response_is_decompressed(
    coding: bytes, pack: Callable[[bytes], bytes], stream: bool
) -> None:
    packed = b"Content-Encoding: %b\r\n" % coding
    if stream:
        answer = HEAD + packed + b"\r\n" + chunked(pack(BODY))
    else:
        answer = JSON % (len(pack(COMPLETION)), packed, pack(COMPLETION))
    wire = Wire(answer)
    async with listening(wire) as url, serving(make_instance(url)) as served:
        for _ in range(2):
            status, data, headers = await ask(served, stream)
            assert status == 200
            assert "Content-Encoding" not in headers
            assert data == EXPECTED if stream else json.loads(data)["choices"]
    assert wire.connections == 1


@pytest.mark.proves("F47")
@pytest.mark.parametrize("coding", [b"br", b"zstd", b"gzip", b"x"])
@pytest.mark.parametrize("stream", [True, False])
async def test_an_invalid_compressed_response_fails_over(coding: bytes, stream: bool) -> None:
    packed = b"Content-Encoding: %b\r\n" % coding
    noise = b"\x00\x01\x02\x03" * 10
    answer = HEAD + packed + b"\r\n" + chunked(noise) if stream else JSON % (40, packed, noise)
    async with pair(Wire(answer), max_attempts=1) as served:
        status, _, _ = await ask(served, stream)
        assert status == 503
        assert served.instances[0].default.last_reason


@pytest.mark.proves("F25", "F47")
async def test_a_decompression_bomb_fails_over() -> None:
    bomb = gzip.compress(b" " * 40_000_000)
    packed = JSON % (len(bomb), b"Content-Encoding: gzip\r\n", bomb)
    async with pair(Wire(packed), max_attempts=1) as served:
        assert (await ask(served, stream=False))[0] == 503
        assert served.instances[0].default.last_reason == "sent too large an answer"


@pytest.mark.proves("F28", "S-16")
@pytest.mark.parametrize("stream", [True, False])
async def test_no_header_of_an_upstream_reaches_the_caller(
    upstream: FakeUpstream, stream: bool
) -> None:
    upstream.default = Reply(
        headers={
            "Set-Cookie": "a=b",
            "Server": "secret/1",
            "X-Internal": "yes",
            "Access-Control-Allow-Origin": "https://evil.example",
            "Location": "/elsewhere",
            "Openai-Organization": "org-1",
            "X-Request-Id": "theirs",
        }
    )
    async with serving(make_instance(upstream)) as served:
        for status in (200, 400):
            upstream.default = Reply(**{**vars(upstream.default), "status": status})
            got, _, headers = await served.chat(stream=stream)
            assert got == status
            assert headers["X-Request-Id"] != "theirs"
            assert not {
                "Set-Cookie",
                "Server",
                "X-Internal",
                "Location",
                "Openai-Organization",
                "Access-Control-Allow-Origin",
            } & set(headers)


@pytest.mark.proves("F37", "F13")
async def test_an_unknown_host_name_fails_over(
    upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_up(host: str, *args: Any, **more: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    lost = make_instance("http://nowhere.invalid/v1")
    async with serving(lost, make_instance(upstream, 2)) as served:
        status, _, headers = await served.chat(headers=IN_TURN)
        assert (status, headers["X-Nexus-Attempts"]) == (200, "2")
    assert lost.default.last_reason == "its host name was not found"


@pytest.mark.proves("F48")
@pytest.mark.parametrize("key", ["k", "k" * 500])
async def test_keys_of_any_length_work(upstream: FakeUpstream, key: str) -> None:
    first = make_instance(upstream, key=Secret(key))
    second = make_instance(upstream, key=Secret(key), provider=Other, name="other")
    async with serving(first, second) as served:
        for model in ("fake", "other"):
            status, _, headers = await served.chat({**BODIES[True], "model": model})
            assert (status, headers["X-Nexus-Provider"]) == (200, f"{model.title()} (Key #1)")
        assert upstream.hits(key) == 2


@pytest.mark.proves("F45")
@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("is_reset", [False, True])
async def test_a_connection_closed_while_idle_costs_no_attempt(is_reset: bool) -> None:
    # None: it reads the request and closes, like a connection that was closed just before.
    wire = Wire(GOOD, None, GOOD)
    wire.resets = is_reset
    async with listening(wire) as url, serving(make_instance(url)) as served:
        for _ in range(2):
            status, text, headers = await served.chat(BODIES[True])
            assert (status, text.encode()) == (200, EXPECTED)
            assert headers["X-Nexus-Attempts"] == "1"
        assert served.instances[0].health.success_rate() == 1
    assert (wire.connections, wire.served) == (2, 3)


@pytest.mark.proves("F12", "F45")
@pytest.mark.parametrize("begun", [b"H", b"HTTP/1.1 200", HEAD])
async def test_a_request_whose_response_has_begun_is_not_sent_again(begun: bytes) -> None:
    wire = Wire(GOOD, b"%bConnection: close" % begun if begun is HEAD else begun, GOOD)
    async with listening(wire) as url, serving(make_instance(url), max_attempts=1) as served:
        assert (await ask(served))[0] == 200
        cutting = asyncio.create_task(ask(served))
        while wire.served < 2:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.02)
        wire.writers[0].close()
        assert (await cutting)[0] == 503
    assert wire.served == 2


@pytest.mark.proves("F12", "F45")
async def test_a_fresh_connection_that_is_closed_is_a_failure() -> None:
    wire = Wire(None)
    async with listening(wire) as url, serving(make_instance(url), max_attempts=1) as served:
        assert (await ask(served))[0] == 503
        assert served.instances[0].default.last_reason == "closed the connection"
    assert wire.served == 1


async def test_a_native_dialect_gets_no_events_without_data() -> None:
    class Native(Fake):
        endpoints = {"messages": "/messages"}

    start = b'event: message_start\ndata: {"type":"message_start","message":{"usage":{}}}\n\n'
    delta = b'data: {"type":"content_block_delta","delta":{"type":"text_delta","text":"x"}}\n\n'
    stop = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    noise = b"retry: 5\n\nid: 1\n: seen\n\nevent: ping\n\n"
    body = noise + start + noise + delta + noise + stop
    wire = Wire(HEAD + b"\r\n" + chunked(body, 10_000))
    async with listening(wire) as url, serving(make_instance(url, provider=Native)) as served:
        message_body = {**BODIES[True], "max_tokens": 9, "model": "fake-large"}
        _, text, _ = await served.post("/v1/messages", message_body)
    assert text.encode().replace(b": seen\n\n", b"") == start + delta + stop
