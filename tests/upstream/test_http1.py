"""HTTP/1.1 on bytes: usual input is parsed, unusual input left to aiohttp, wrong input refused."""

from __future__ import annotations

import pytest
from cuts import cut
from hypothesis import given
from hypothesis import strategies as st

from nexus_gateway.upstream.http1 import (
    BadFraming,
    ChunkedBody,
    SizedBody,
    UnsupportedResponse,
    read_head,
    request_head,
)

CONTENT = st.binary(min_size=1, max_size=40) | st.sampled_from(
    [b"\r\n", b"\r\n5\r\n", b"5\r\nhello\r\n", b"0\r\n\r\n", b"\r\n0\r\n\r\n", b"x" * 300]
)


def wire(contents: list[bytes], size: str = "%x", end: bytes = b"0\r\n\r\n") -> bytes:
    framed = [(size % len(c)).encode() + b"\r\n" + c + b"\r\n" for c in contents]
    return b"".join(framed) + end


@given(
    st.lists(CONTENT, max_size=8),
    st.lists(st.integers(0, 500), max_size=20),
    st.sampled_from(["%x", "%X", "%04x", "%x;a=b", "%x ; q"]),
    st.sampled_from([b"0\r\n\r\n", b"000\r\n\r\n", b"0\r\nX-Trailer: 1\r\nY: 2\r\n\r\n"]),
)
def test_chunks_give_their_content_however_they_are_cut(
    contents: list[bytes], places: list[int], size: str, end: bytes
) -> None:
    body = ChunkedBody()
    got = b"".join(map(body.feed, cut(wire(contents, size, end), places)))

    assert got == b"".join(contents)
    assert body.ended
    assert not body.surplus


@given(st.lists(CONTENT, max_size=4), st.binary(min_size=1, max_size=20), st.booleans())
def test_bytes_after_the_end_are_noticed(contents: list[bytes], more: bytes, apart: bool) -> None:
    body = ChunkedBody()
    pieces = [wire(contents), more] if apart else [wire(contents) + more]
    assert b"".join(map(body.feed, pieces)) == b"".join(contents)
    assert body.ended
    assert body.surplus


@given(st.lists(CONTENT, min_size=1, max_size=5), st.data())
def test_a_body_that_was_cut_off_has_not_ended(contents: list[bytes], data: st.DataObject) -> None:
    message = wire(contents)
    body = ChunkedBody()
    got = body.feed(message[: data.draw(st.integers(0, len(message) - 1))])
    assert not body.ended
    assert b"".join(contents).startswith(got)


@pytest.mark.parametrize(
    "data",
    [
        b"zz\r\n",
        b"\r\n",
        b"+5\r\nhello\r\n",
        b"0x5\r\nhello\r\n",
        b"1_0\r\n",
        b"-1\r\n",
        b"5\nhello\r\n",
        b"5\r\nhelloX\r\n0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"5\r\nhello\r\n \r\n",
        b"123456789\r\n",
        b"5;a\x00b\r\nhello\r\n",
        b"5" * 5000,
        b"0\r\n" + b"A: b\r\n" * 20000,
    ],
)
@pytest.mark.parametrize("bytewise", [False, True])
def test_a_body_that_breaks_the_rules_is_refused(data: bytes, bytewise: bool) -> None:
    pieces = [data[i : i + 1] for i in range(len(data))] if bytewise else [data]
    body = ChunkedBody()
    with pytest.raises(BadFraming):
        list(map(body.feed, pieces))


def test_a_body_with_a_length_ends_at_it() -> None:
    body = SizedBody(5)
    assert (body.feed(b"hel"), body.ended) == (b"hel", False)
    assert (body.feed(b"lo"), body.ended, body.surplus) == (b"lo", True, False)
    assert (body.feed(b"!"), body.surplus) == (b"", True)
    assert SizedBody(0).ended


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


@given(st.integers(0, len(HEAD) - 1))
def test_an_incomplete_head_is_not_parsed(size: int) -> None:
    assert read_head(HEAD[:size]) is None


def test_a_usual_head_is_parsed() -> None:
    parsed = read_head(HEAD.replace(b"text", b"  text") + b"rest")
    assert parsed is not None
    head, start = parsed
    assert (HEAD.replace(b"text", b"  text") + b"rest")[start:] == b"rest"
    assert head.headers["content-type"] == "text/event-stream"
    assert head.keep_alive
    assert isinstance(head.body, ChunkedBody)


def test_a_length_and_a_close_are_parsed() -> None:
    parsed = read_head(b"HTTP/1.1 200\r\nContent-Length: 12\r\nConnection: close\r\n\r\n")
    assert parsed is not None
    assert isinstance(parsed[0].body, SizedBody)
    assert not parsed[0].keep_alive


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 429 Too Many\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1, 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n folded: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length : 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nX: a\nY: b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nX: a\x00b\r\n\r\n",
        b"SSH-2.0-OpenSSH",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20000,
    ],
)
def test_an_unusual_head_is_left_to_another_parser(head: bytes) -> None:
    with pytest.raises(UnsupportedResponse):
        read_head(head)


@pytest.mark.proves("F35")
def test_a_request_that_could_be_misread_is_not_written() -> None:
    lines = (("Host", "h"), ("Authorization", "Bearer k"))
    assert request_head("/v1?a=b", lines) == (
        b"POST /v1?a=b HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer k\r\nContent-Length: "
    )
    for bad in ("a\r\nX: y", "a\nb", "a\0b", "é"):
        assert request_head("/", (("X", bad),)) is None
        assert request_head("/", ((bad, "x"),)) is None
        assert request_head("/" + bad, lines) is None
    assert request_head("/a b", lines) is None
