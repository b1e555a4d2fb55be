"""The reader of plain heads: what it accepts, aiohttp's parser reads in the same way."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp.http_parser import HttpRequestParser
from hypothesis import given
from hypothesis import strategies as st

from nexus_gateway.fastpath.head import read_head

LINE = b"POST /v1/chat/completions HTTP/1.1"
LINES = [
    *(LINE, LINE, b"GET /health HTTP/1.1", b"post / HTTP/1.1", b"POST  / HTTP/1.1"),
    *(b"POST / HTTP/1.0", b"POST /a b HTTP/1.1", b"CONNECT a:1 HTTP/1.1", b"POST * HTTP/1.1"),
    *(b"POST /\xe9 HTTP/1.1", b"POST http://x/ HTTP/1.1", b"POST / HTTP/1.1 ", b""),
]
FIELDS = [
    *(b"Host: x", b"Host: x", b"host:x", b"Host: y", b"X-A: b", b"X-A:\tb ", b"X-A:", b"X-B: \xe9"),
    *(b"Content-Length: 5", b"content-length: 5", b"Content-Length:5", b"Content-Length: 05"),
    *(b"Content-Length: +5", b"Content-Length: 5, 5", b"Content-Length : 5", b"Content-Length: "),
    *(b" Content-Length: 5", b"X\tY: a", b"X: a\rContent-Length: 7", b"X: a\nContent-Length: 7"),
    *(b"Transfer-Encoding: chunked", b"Transfer-Encoding:chunked", b"transfer-encoding: identity"),
    *(b"Transfer-Encoding : chunked", b"\x0bTransfer-Encoding: chunked", b"X: \0", b"no colon"),
    *(b"Upgrade: h2c", b"Connection: upgrade", b"Connection: keep-alive", b"Connection: close"),
    *(b"Expect: 100-continue", b"X: a\r\n b", b": a", b"Content_Length: 5", b"Content-Length: 0"),
]
ENDS = [b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\r\r\n"]
NEXT = b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n"


def as_aiohttp(data: bytes) -> list[tuple[Any, bytes]]:
    """Return the heads and bodies that aiohttp reads; it raises if it refuses them."""
    loop = asyncio.new_event_loop()
    try:

        class Unpaused:
            _reading_paused = False

        parser = HttpRequestParser(Unpaused(), loop, 2**16, auto_decompress=False)  # type: ignore[arg-type]
        messages, _, _ = parser.feed_data(data)
        bodies = [payload.read_nowait() if payload.is_eof() else b"?" for _, payload in messages]
        return [(message, body) for (message, _), body in zip(messages, bodies, strict=True)]
    finally:
        loop.close()


lines = st.sampled_from(LINES)
fields = st.lists(st.tuples(st.sampled_from(FIELDS), st.sampled_from(ENDS)), max_size=5)


@pytest.mark.proves("F35", "F36")
@given(line=lines, first=st.sampled_from(ENDS), fields=fields, last=st.sampled_from(ENDS))
def test_what_is_plain_is_read_as_aiohttp_reads_it(
    line: bytes, first: bytes, fields: list[tuple[bytes, bytes]], last: bytes
) -> None:
    data = line + first + b"".join(field + end for field, end in fields) + last + b"hello"
    found = read_head(data)
    if found is None:
        return
    head, start, end = found
    assert end - start in (0, 5)
    (message, body), (after, _) = as_aiohttp(data[:end] + NEXT)
    assert after.path == "/next"
    assert body == data[start:end]
    read = {name: value for name, value in message.headers.items() if name != "Content-Length"}
    expected = {k.lower(): v for k, v in read.items() if k.lower() != "content-length"}
    assert {k.lower(): v for k, v in head.headers.items()} == expected
    assert (message.method, message.path) == tuple(line.decode().split(" ")[:2])
    assert not any((message.chunked, message.upgrade, message.should_close))


@pytest.mark.proves("F35")
def test_the_property_sees_plain_heads() -> None:
    for length, plain in ((b"Content-Length: 5", True), (b"content-length: 5", True)):
        data = b"\r\n".join((LINE, b"Host: x", length, b"", b"hello"))
        found = read_head(data)
        assert (found is not None) is plain
        assert found is not None
        assert data[found[1] : found[2]] == b"hello"
        assert found[0].dialect is not None


@pytest.mark.proves("F35", "F36")
@pytest.mark.parametrize("field", FIELDS[13:])
def test_what_decides_about_framing_is_never_guessed(field: bytes) -> None:
    plain = (b"Connection: keep-alive", b"Content_Length: 5", b"Content-Length: 0")
    for fields in ((b"Host: x", field), (field, b"Host: x"), (b"Host: x", field, b"X-Last: 1")):
        data = b"\r\n".join((LINE, *fields, b"", b""))
        assert (read_head(data) is not None) is (field in plain), fields


def test_heads_beyond_the_limits_are_not_plain() -> None:
    ok = b"\r\n".join((LINE, b"Host: x", b"X: " + b"a" * 7000, b"", b""))
    assert read_head(ok) is not None
    assert read_head(ok.replace(b"a" * 7000, b"a" * 9000)) is None
    many = (b"X-%d: a" % n for n in range(70))
    assert read_head(b"\r\n".join((LINE, b"Host: x", *many, b"", b""))) is None
    assert (
        read_head(b"\r\n".join((LINE, b"Host: x", b"Content-Length: 9999999999", b"", b""))) is None
    )


@pytest.mark.parametrize(
    "field",
    [
        *(b"Origin: http://a", b"Via: 1.1 a", b"X-Nexus-Hedge: true", b"X-Nexus-Explain: true"),
        *(b"Content-Encoding: gzip", b"X-Request-Timeout-Ms: 5"),
    ],
)
def test_what_only_the_main_path_does_is_for_it(field: bytes) -> None:
    found = read_head(b"\r\n".join((LINE, b"Host: x", field, b"", b"")))
    assert found is not None
    assert found[0].dialect is None
