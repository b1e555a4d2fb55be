"""HTTP/1.1 on bytes: writes the usual request, reads the usual response.

Only the usual response is read here: a final 200, its body chunked or with a Content-Length, not
compressed. Any other raises `UnsupportedResponse` and is left to aiohttp's parser. Parsing is
strict (RFC 9112, sections 4 to 7): if two parsers disagree about where a response ends, one caller
receives another's response.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache, partial

from multidict import CIMultiDict

MAX_HEAD_BYTES = 16 * 1024
MAX_LINE_BYTES = 4096
MAX_TRAILER_BYTES = 8 * 1024  # searched again with each part that arrives
_STATUS_LINE = re.compile(rb"HTTP/1\.1 200(?: [\t\x20-\x7e\x80-\xff]*)?\r\n")
_FIELD_LINES = re.compile(rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*\r\n)*")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?\r\n")
_BETWEEN_CHUNKS = re.compile(rb"\r\n([0-9A-Fa-f]{1,4})\r\n")
_FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FIELD_VALUE = re.compile(r"[\t\x20-\x7e]*")
_TARGET = re.compile(r"/[\x21-\x7e]*")


class UnsupportedResponse(Exception):
    """A head for a more general parser; not an error."""


class BadFraming(ValueError):
    """A body that violates HTTP."""


# Cached: few different ones occur.
_chunk_size = lru_cache(maxsize=4096)(partial(int, base=16))


class ChunkedBody:
    """A body with `Transfer-Encoding: chunked`.

    `surplus`: bytes arrived after its end, so the connection must not be reused.
    """

    def __init__(self) -> None:
        self.ended = False
        self.surplus = False
        self._rest = b""
        self._left = 0  # bytes of the current chunk's content
        self._closing = False  # only the line end of the current chunk is missing

    def feed(self, data: bytes) -> bytes:
        """Return the content in data, also of an incomplete chunk; BadFraming if invalid."""
        if self.ended:
            self.surplus = self.surplus or bool(data)
            return b""
        if self._rest:
            data, self._rest = self._rest + data, b""
        if not self._left and not self._closing:
            line = _CHUNK_LINE.match(data)
            if line is not None:
                # The usual case: exactly one chunk.
                start, size = line.end(), int(line[1], 16)
                if size and len(data) == start + size + 2 and data.endswith(b"\r\n"):
                    return data[start:-2]
        parts: list[bytes] = []
        at = self._close_chunk(data, 0, parts)
        if at >= 0:
            at += self._split_chunks(data[at:], parts)
        while at >= 0:
            at = self._open_chunk(data, at)
            if at >= 0:
                at = self._close_chunk(data, at, parts)
        return b"".join(parts)

    def _close_chunk(self, data: bytes, at: int, parts: list[bytes]) -> int:
        """Take the rest of the current chunk; return where it ends, -1 if it is incomplete."""
        if self._left:
            content = data[at : at + self._left]
            parts.append(content)
            at += len(content)
            self._left -= len(content)
            if self._left:
                return -1
            self._closing = True
        if self._closing:
            line_end = data[at : at + 2]
            if line_end != b"\r\n":
                if not b"\r\n".startswith(line_end):
                    raise BadFraming("a chunk is longer than its size")
                self._rest = line_end
                return -1
            self._closing = False
            at += 2
        return at

    def _split_chunks(self, data: bytes, parts: list[bytes]) -> int:
        """Take all complete chunks but the last at once, if they are plain; return their length.

        Splitting matches anything that looks like a size. If each one equals the length of what
        follows it, all are real sizes, one chunk after the other from the first.
        """
        pieces = _BETWEEN_CHUNKS.split(b"\r\n" + data)
        sizes, contents = pieces[1:-2:2], pieces[2:-2:2]
        if not contents or pieces[0]:
            return 0
        lengths = list(map(_chunk_size, sizes))
        if 0 in lengths or lengths != list(map(len, contents)):
            return 0
        parts += contents
        return sum(map(len, sizes)) + sum(lengths) + 4 * len(sizes)  # two line ends a chunk

    def _open_chunk(self, data: bytes, at: int) -> int:
        """Read a chunk's size; return where its content begins, -1 if there is none (yet)."""
        line = _CHUNK_LINE.match(data, at)
        if line is None:
            rest = data[at:]
            if b"\n" in rest or len(rest) > MAX_LINE_BYTES:
                raise BadFraming("a chunk's size is invalid")
            self._rest = rest
            return -1
        self._left = int(line[1], 16)
        if self._left:
            return line.end()
        # The last, empty chunk: find the end of the body after its trailers, which are ignored.
        end = data.find(b"\r\n\r\n", line.end() - 2)
        if end >= 0:
            self.ended, self.surplus = True, len(data) > end + 4
        elif len(data) - at > MAX_TRAILER_BYTES:
            raise BadFraming("the trailers are too long")
        else:
            self._rest = data[at:]
        return -1


class SizedBody:
    """A body with a Content-Length."""

    def __init__(self, length: int) -> None:
        self.ended = length == 0
        self.surplus = False
        self._left = length

    def feed(self, data: bytes) -> bytes:
        body = data if len(data) <= self._left else data[: self._left]
        self._left -= len(body)
        self.ended = not self._left
        self.surplus = self.surplus or len(body) < len(data)
        return body


@dataclass(slots=True)
class Head:
    """A response's head; `body` reads what follows."""

    headers: CIMultiDict[str]
    keep_alive: bool
    body: ChunkedBody | SizedBody


def read_head(data: bytes) -> tuple[Head, int] | None:
    """Return a response's head and where its body begins; None if the head is incomplete.

    UnsupportedResponse if it is for a more general parser.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0:
        start = b"HTTP/1.1 200"
        usual = data.startswith(start) or start.startswith(data)
        if len(data) > MAX_HEAD_BYTES or not usual:
            raise UnsupportedResponse
        return None
    status = _STATUS_LINE.match(data)
    if status is None or _FIELD_LINES.fullmatch(data, status.end(), end + 2) is None:
        raise UnsupportedResponse
    headers: CIMultiDict[str] = CIMultiDict()
    for line in data[status.end() : end].decode("utf-8", "surrogateescape").split("\r\n"):
        name, _, value = line.partition(":")
        headers.add(name, value.strip(" \t"))
    return _framed(headers), end + 4


def _framed(headers: CIMultiDict[str]) -> Head:
    """Decide how the body is framed; UnsupportedResponse if that is unusual."""
    options = ",".join(headers.getall("Connection", [])).lower()
    encodings: list[str] = headers.getall("Transfer-Encoding", [])
    lengths: list[str] = headers.getall("Content-Length", [])
    coding = headers.get("Content-Encoding", "identity").lower()
    if "upgrade" in options or coding != "identity" or len(encodings) + len(lengths) != 1:
        raise UnsupportedResponse
    body: ChunkedBody | SizedBody
    if encodings and encodings[0].lower() == "chunked":
        body = ChunkedBody()
    elif lengths and lengths[0].isascii() and lengths[0].isdigit() and len(lengths[0]) <= 15:
        body = SizedBody(int(lengths[0]))
    else:
        raise UnsupportedResponse
    return Head(headers, "close" not in options, body)


def request_head(target: str, fields: tuple[tuple[str, str], ...]) -> bytes | None:
    """Return the head of a POST up to the number after `Content-Length: `.

    None if the target (path and query) or a field would need escaping.
    """
    if not _TARGET.fullmatch(target):
        return None
    for name, value in fields:
        if not (_FIELD_NAME.fullmatch(name) and _FIELD_VALUE.fullmatch(value)):
            return None
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
    return f"POST {target} HTTP/1.1\r\n{lines}Content-Length: ".encode("ascii")
