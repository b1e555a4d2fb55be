"""Upstreams that send more, less or something else than they were asked for, on reused connections.

Each request carries a number, and so does each answer: no caller may read another's.
"""

from __future__ import annotations

import asyncio
import logging
import re
import select
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import aiohttp
import pytest
from raw import listening
from waiting import until

from nexus_gateway.provider import HttpRequest
from nexus_gateway.settings import Settings
from nexus_gateway.upstream.client import Client, open_client
from nexus_gateway.upstream.response import read_up_to

CALLERS, REQUESTS = 4, 24
LARGE = 513 * 1024
PAUSE_S = 0.002
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
LATE = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
NUMBER = re.compile(rb"<([0-9]+)>")


def sized(body: bytes, length: int | None = None) -> bytes:
    length = len(body) if length is None else length
    return OK + b"Content-Length: %d\r\n\r\n%b" % (length, body)


def chunks(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


class Broken(Exception):
    """The server closes the connection."""


class Upstream:
    """Answers each request with its number; every second one on a connection by a misframing."""

    def __init__(self, misframe: Misframing | None) -> None:
        self.misframe = misframe
        self.connections = 0
        self.served = 0
        self.misframed = 0
        self.open = 0
        self.misframing = 0  # now
        self.writers: list[asyncio.StreamWriter] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        self.writers.append(writer)
        before = b""
        try:
            for turn in count(1):
                head = await reader.readuntil(b"\r\n\r\n")
                number = NUMBER.findall(head)[0]
                body = b'{"number":"<%b>"}' % number
                is_early = self.misframe is early
                if not is_early:
                    await read_body(reader, head)
                self.served += 1
                if turn % 2 and self.misframe is not None:
                    self.misframed += 1
                    self.misframing += 1
                    try:
                        await self.misframe(writer, body)
                    finally:
                        self.misframing -= 1
                elif self.misframe is next_request and before:
                    writer.write(sized(before) + sized(body))
                else:
                    writer.write(sized(body))
                if is_early:
                    await read_body(reader, head)
                before = body
        except (asyncio.IncompleteReadError, ConnectionError, Broken):
            pass
        finally:
            self.open -= 1
            writer.close()


async def read_body(reader: asyncio.StreamReader, head: bytes) -> None:
    if length := re.search(rb"(?i)content-length: ([0-9]+)", head):
        await reader.readexactly(int(length[1]))
    else:
        await reader.readuntil(b"0\r\n\r\n")


Misframing = Callable[[asyncio.StreamWriter, bytes], Awaitable[None]]


async def same_segment(writer: asyncio.StreamWriter, body: bytes) -> None:
    writer.write(sized(body) + sized(body))


async def later_segment(writer: asyncio.StreamWriter, body: bytes) -> None:
    writer.write(sized(body))
    await asyncio.sleep(0)
    writer.write(sized(body))


async def idle(writer: asyncio.StreamWriter, body: bytes) -> None:
    writer.write(sized(body))
    await asyncio.sleep(PAUSE_S)
    writer.write(sized(body))


async def next_request(writer: asyncio.StreamWriter, body: bytes) -> None:
    """The second answer comes with the answer to the next request."""
    writer.write(sized(body))


async def late_408(writer: asyncio.StreamWriter, body: bytes) -> None:
    writer.write(sized(body))
    await asyncio.sleep(PAUSE_S)
    writer.write(LATE)
    raise Broken


async def too_short(writer: asyncio.StreamWriter, body: bytes) -> None:
    writer.write(sized(body + sized(body), len(body) - 2))


async def too_long(writer: asyncio.StreamWriter, body: bytes) -> None:
    writer.write(sized(body, len(body) + 9))
    await asyncio.sleep(PAUSE_S)
    raise Broken


async def length_and_chunks(writer: asyncio.StreamWriter, body: bytes) -> None:
    coded = chunks(body)
    writer.write(OK + b"Content-Length: %d\r\n" % len(coded))
    writer.write(b"Transfer-Encoding: chunked\r\n\r\n" + coded + sized(body))


async def two_lengths(writer: asyncio.StreamWriter, body: bytes) -> None:
    writer.write(OK + b"Content-Length: %d\r\n" % len(body) + sized(body, 3)[len(OK) :])


async def behind_the_last_chunk(writer: asyncio.StreamWriter, body: bytes) -> None:
    writer.write(OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunks(body) + sized(body))


async def no_content_with_a_body(writer: asyncio.StreamWriter, body: bytes) -> None:
    writer.write(b"HTTP/1.1 204 No Content\r\n\r\n" + sized(body))


async def not_modified_with_a_body(writer: asyncio.StreamWriter, body: bytes) -> None:
    writer.write(b"HTTP/1.1 304 Not Modified\r\n\r\n")
    await asyncio.sleep(0)
    writer.write(sized(body))


async def many_1xx(writer: asyncio.StreamWriter, body: bytes) -> None:
    writer.write(b"HTTP/1.1 103 Early Hints\r\nX: <0>\r\n\r\n" * 500 + sized(body))


async def as_to_head(writer: asyncio.StreamWriter, body: bytes) -> None:
    writer.write(sized(body)[: -len(body)])
    await asyncio.sleep(PAUSE_S)
    raise Broken


async def switching(writer: asyncio.StreamWriter, body: bytes) -> None:
    writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n")
    writer.write(sized(body))


async def blank_lines(writer: asyncio.StreamWriter, body: bytes) -> None:
    writer.write(sized(body) + b"\r\n\r\n")


async def early(writer: asyncio.StreamWriter, body: bytes) -> None:
    """The answer comes before the request has been read."""
    writer.write(sized(body) + sized(body))


MISFRAMINGS = (
    same_segment,
    later_segment,
    idle,
    next_request,
    late_408,
    too_short,
    too_long,
    length_and_chunks,
    two_lengths,
    behind_the_last_chunk,
    no_content_with_a_body,
    not_modified_with_a_body,
    many_1xx,
    as_to_head,
    switching,
    blank_lines,
    early,
)


@pytest.fixture(params=["direct", "plain"])
def settings(request: pytest.FixtureRequest) -> Settings:
    return Settings(direct_path=request.param == "direct")


def small() -> bytes:
    return b"{}"


def crowded() -> bytes:
    return b"x" * (LARGE - 64 * 1024)  # more than a receiver takes that does not read


def large() -> bytes:
    return b"x" * LARGE


async def form() -> AsyncIterator[bytes]:
    yield b"--x\r\n\r\n"
    yield b"--x--"


Make = Callable[[], Any]


async def ask(client: Client, url: str, number: int, make: Make = small) -> bytes:
    """Return the answer's status and body; ClientError, OSError or ValueError."""
    headers = {"X-Number": f"<{number}>"}
    response = await client.post(HttpRequest(url, make(), headers))
    is_whole = False
    try:
        body = await read_up_to(response, 1_000_000)
        is_whole = True
    finally:
        await response.finish(whole=is_whole)
    return body


@asynccontextmanager
async def reaching(upstream: Upstream, settings: Settings) -> AsyncIterator[tuple[Client, str]]:
    async with listening(upstream) as url, open_client(settings) as client:  # type: ignore[arg-type]
        yield client, url


@pytest.mark.proves("F66")
@pytest.mark.parametrize("misframe", MISFRAMINGS)
@pytest.mark.parametrize("make", [small, large, form])
async def test_no_caller_reads_an_answer_to_another(
    misframe: Misframing, make: Make, settings: Settings
) -> None:
    upstream, numbers = Upstream(misframe), iter(range(1, REQUESTS + 1))
    answers: dict[int, bytes] = {}

    async def caller(client: Client, url: str) -> None:
        for number in numbers:
            await until(lambda: not upstream.misframing)
            try:
                answers[number] = await ask(client, url, number, make)
            except (aiohttp.ClientError, OSError, ValueError):
                answers[number] = b""

    async with reaching(upstream, settings) as (client, url):
        async with asyncio.timeout(60):
            await asyncio.gather(*(caller(client, url) for _ in range(CALLERS)))
    assert upstream.misframed
    for number, body in answers.items():
        assert set(NUMBER.findall(body)) <= {b"%d" % number}
    assert len(answers) == REQUESTS


@pytest.mark.proves("F66")
@pytest.mark.parametrize("extra", [b"HTTP/1.1 200 OK\r\n", b"x", LATE, b"\r\n"])
async def test_an_idle_connection_is_closed_by_its_first_byte(
    extra: bytes, settings: Settings
) -> None:
    upstream = Upstream(None)
    async with reaching(upstream, settings) as (client, url):
        await ask(client, url, 1)
        upstream.writers[0].write(extra)
        await until(lambda: not upstream.open)  # without another request
        assert b"<2>" in await ask(client, url, 2)
    assert upstream.connections == 2


async def test_bytes_that_the_event_loop_has_not_read_yet_count_too(settings: Settings) -> None:
    upstream = Upstream(None)
    async with reaching(upstream, settings) as (client, url):
        await ask(client, url, 1)
        # Into the kernel's buffer at once; both happen in the same turn of the loop.
        upstream.writers[0].write(sized(b"<1>"))
        assert b"<2>" in await ask(client, url, 2)
    assert upstream.connections == 2


@pytest.mark.proves("F66")
@pytest.mark.skipif(sys.platform != "linux", reason="what has arrived is known on Linux")
async def test_no_answer_counts_that_was_sent_before_the_request_arrived(
    settings: Settings,
) -> None:
    """The request has left this process, but not for the other host, which has no room for it."""
    upstream = Upstream(None)
    async with reaching(upstream, settings) as (client, url):
        await ask(client, url, 1)
        late = upstream.writers[0]
        late.transport.pause_reading()  # type: ignore[attr-defined]
        asking = asyncio.create_task(ask(client, url, 2, crowded))
        connection = late.get_extra_info("socket")
        await until(lambda: select.select([connection], [], [], 0)[0])
        late.write(sized(b"<1>"))
        assert b"<2>" in await asking
    assert upstream.connections == 2


@pytest.mark.proves("F66")
@pytest.mark.parametrize(
    ("extra", "is_trusted"), [(sized(b"<1>"), False), (b"garbage", False), (LATE, True)]
)
async def test_an_origin_that_sends_too_much_is_not_trusted_for_ten_minutes(
    extra: bytes, is_trusted: bool, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    upstream, other = Upstream(None), Upstream(None)
    async with (
        reaching(upstream, settings) as (client, url),
        listening(other) as other_url,  # type: ignore[arg-type]
    ):
        with caplog.at_level(logging.WARNING):
            for number in (1, 2):
                await ask(client, url, number)
                upstream.writers[-1].write(extra)
                await until(lambda: not upstream.open)
            for number in (3, 4, 5):
                assert b"<%d>" % number in await ask(client, url, number)
                await ask(client, other_url, number)
        lines = [r.message for r in caplog.records if "more than it was asked for" in r.message]
        assert len(lines) == (0 if is_trusted else 1)
        assert upstream.connections == (3 if is_trusted else 5)
        assert other.connections == 1
        pool = client._pool
        assert all(until_s - pool._loop.time() > 590 for until_s in pool._distrusted.values())
        pool._distrusted = dict.fromkeys(pool._distrusted, 0.0)  # ten minutes later
        before = upstream.connections
        for number in (6, 7, 8):
            await ask(client, url, number)
        assert upstream.connections - before == (0 if is_trusted else 1)


async def test_an_answer_that_passes_for_the_next_one_is_the_last_to_go_astray(
    settings: Settings,
) -> None:
    """A second answer behind the next request cannot be told from its answer, but shows then."""

    class Shifted(Upstream):
        async def __call__(
            self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> None:
            self.writers.append(writer)
            self.connections += 1
            bodies: list[bytes] = [b""]
            try:
                while head := await reader.readuntil(b"\r\n\r\n"):
                    await read_body(reader, head)
                    bodies.append(b"<%b>" % NUMBER.findall(head)[0])
                    self.misframing += 1
                    if bodies[-2]:
                        writer.write(sized(bodies[-2]))
                        await asyncio.sleep(PAUSE_S)
                    writer.write(sized(bodies[-1]))
                    self.misframing -= 1
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
            finally:
                writer.close()

    upstream = Shifted(None)
    async with reaching(upstream, settings) as (client, url):
        answers = []
        for number in range(20):
            answers.append(await ask(client, url, number))
            await until(lambda: not upstream.misframing)
    astray = [n for n, body in enumerate(answers) if body != b"<%d>" % n]
    assert astray == [1]
    assert upstream.connections == 19
