"""HTTP/1.1 on bytes: the usual request written, the usual answer read.

Only the usual shape is read here: a final 200, its body chunked or with its length told, nothing
compressed. Whatever else comes is `UnsupportedResponse`, and is for the HTTP client's own parser, which
has seen everything. What is read is read strictly (RFC 9112, sections 4 to 7): two readers who
disagree about where an answer ends are how one caller gets another's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Protocol

from multidict import CIMultiDict

LONGEST_HEAD = 16 * 1024
LONGEST_LINE = 4096
LONGEST_TRAILERS = 8 * 1024  # read anew with each piece that comes
_STATUS_LINE = re.compile(rb"HTTP/1\.1 200(?: [\t\x20-\x7e\x80-\xff]*)?\r\n")
_FIELD_LINES = re.compile(rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*\r\n)*")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?\r\n")
_BETWEEN_CHUNKS = re.compile(rb"\r\n([0-9A-Fa-f]{1,4})\r\n")
_SENDABLE_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_SENDABLE_VALUE = re.compile(r"[\t\x20-\x7e]*")
_SENDABLE_TARGET = re.compile(r"/[\x21-\x7e]*")


class UnsupportedResponse(Exception):
    """A head that is for a more general parser; not an error."""


class BadFraming(ValueError):
    """A body that breaks HTTP's rules."""


class BodyReader(Protocol):
    """Takes a body off the wire.

    Attributes:
        ended: the whole body has come.
        surplus: something came after its end, so the connection cannot be trusted any more.
    """

    ended: bool
    surplus: bool

    def feed(self, data: bytes) -> bytes:
        """Take what came; return the body's bytes in it. BadFraming where it breaks the rules."""


class _Sizes(dict[bytes, int]):
    """What chunk sizes mean, remembered: few different ones come, and of four digits at most."""

    def __missing__(self, digits: bytes) -> int:
        size = self[digits] = int(digits, 16)
        return size


_SIZES = _Sizes()


class ChunkedBody:
    """A body in chunks (a `BodyReader`)."""

    def __init__(self) -> None:
        self.ended = False
        self.surplus = False
        self._rest = b""
        self._left = 0  # of the present chunk's content
        self._closing = False  # the present chunk's content has come, its line end not yet

    def feed(self, data: bytes) -> bytes:
        """Take what came; return the content in it, also of a chunk that is still on its way.

        Raises:
            BadFraming: it breaks the rules.
        """
        if self.ended:
            self.surplus = self.surplus or bool(data)
            return b""
        if self._rest:
            data, self._rest = self._rest + data, b""
        if not self._left and not self._closing:
            line = _CHUNK_LINE.match(data)
            if line is not None:
                # As models mostly speak: one chunk, whole.
                start, size = line.end(), int(line[1], 16)
                if size and len(data) == start + size + 2 and data.endswith(b"\r\n"):
                    return data[start:-2]
        parts: list[bytes] = []
        at = self._close_chunk(data, 0, parts)
        if at >= 0:
            at += self._take_plain(data[at:], parts)
        while at >= 0:
            at = self._open_chunk(data, at)
            if at >= 0:
                at = self._close_chunk(data, at, parts)
        return b"".join(parts)

    def _close_chunk(self, data: bytes, at: int, parts: list[bytes]) -> int:
        """Take what belongs to the present chunk; return where it ends, -1 if that is to come."""
        if self._left:
            content = data[at : at + self._left]
            parts.append(content)
            at += len(content)
            self._left -= len(content)
            if self._left:
                return -1
            self._closing = True
        if self._closing:
            behind = data[at : at + 2]
            if behind != b"\r\n":
                if not b"\r\n".startswith(behind):
                    raise BadFraming("a chunk is longer than it said")
                self._rest = behind
                return -1
            self._closing = False
            at += 2
        return at

    def _take_plain(self, data: bytes, parts: list[bytes]) -> int:
        """Take all whole chunks but the last at once where they are plain; return how far.

        Splitting finds sizes wherever they seem to stand. Where each one tells the length of what
        follows it, they stand where chunks begin, one after the other from the first.
        """
        pieces = _BETWEEN_CHUNKS.split(b"\r\n" + data)
        sizes, contents = pieces[1:-2:2], pieces[2:-2:2]
        if not contents or pieces[0]:
            return 0
        lengths = list(map(_SIZES.__getitem__, sizes))
        if 0 in lengths or lengths != list(map(len, contents)):
            return 0
        parts += contents
        return sum(map(len, sizes)) + sum(lengths) + 4 * len(sizes)  # and two line ends for each

    def _open_chunk(self, data: bytes, at: int) -> int:
        """Read the line before a chunk; return where that begins, -1 if nothing more is to do."""
        line = _CHUNK_LINE.match(data, at)
        if line is None:
            rest = data[at:]
            if b"\n" in rest or len(rest) > LONGEST_LINE:
                raise BadFraming("a chunk's size is not one")
            self._rest = rest
            return -1
        self._left = int(line[1], 16)
        if self._left:
            return line.end()
        self._end(data[at:], line.end() - at)
        return -1

    def _end(self, rest: bytes, start: int) -> None:
        """Look for the end behind the last chunk, which is empty; trailers are passed over."""
        if rest.startswith(b"\r\n", start):
            end = start + 2
        elif (found := rest.find(b"\r\n\r\n", start)) >= 0:
            end = found + 4
        elif len(rest) > LONGEST_TRAILERS:
            raise BadFraming("the trailers are too long")
        else:
            self._rest = rest
            return
        self.ended, self.surplus = True, len(rest) > end


class SizedBody:
    """A body whose length was told (a `BodyReader`).

    Args:
        length: in bytes.
    """

    def __init__(self, length: int) -> None:
        self.ended = length == 0
        self.surplus = False
        self._left = length

    def feed(self, data: bytes) -> bytes:
        """Take what came; return what belongs to the body."""
        body = data if len(data) <= self._left else data[: self._left]
        self._left -= len(body)
        self.ended = not self._left
        self.surplus = self.surplus or len(body) < len(data)
        return body


class Head:
    """An answer's head, of the usual shape.

    Args:
        lines: its fields, name and value.

    Attributes:
        headers: the fields.
        keep_alive: whether the connection may be used again.
        body: reads what follows.

    Raises:
        UnusualHead: something of it is for a more general parser.
    """

    __slots__ = ("body", "headers", "keep_alive")

    def __init__(self, lines: Iterable[tuple[str, str]]) -> None:
        self.headers = headers = CIMultiDict(lines)
        self.keep_alive = True
        if "Connection" in headers:
            said = ",".join(headers.getall("Connection")).lower()
            self.keep_alive = "close" not in said
            if "upgrade" in said:
                raise UnsupportedResponse
        if headers.get("Content-Encoding", "identity").lower() != "identity":
            raise UnsupportedResponse
        self.body = self._body()

    def _body(self) -> BodyReader:
        encodings: list[str] = self.headers.getall("Transfer-Encoding", [])
        lengths: list[str] = self.headers.getall("Content-Length", [])
        if len(encodings) + len(lengths) != 1:
            raise UnsupportedResponse
        if encodings:
            if encodings[0].lower() != "chunked":
                raise UnsupportedResponse
            return ChunkedBody()
        if not (lengths[0].isascii() and lengths[0].isdigit() and len(lengths[0]) <= 15):
            raise UnsupportedResponse
        return SizedBody(int(lengths[0]))


def read_head(data: bytes) -> tuple[Head, int] | None:
    """Read an answer's head.

    Args:
        data: all that has come so far.

    Returns:
        The head and where its body begins; None as long as it has not come to its end.

    Raises:
        UnusualHead: it is for a more general parser.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0:
        if len(data) > LONGEST_HEAD or not _may_be_usual(data):
            raise UnsupportedResponse
        return None
    status = _STATUS_LINE.match(data)
    if status is None or _FIELD_LINES.fullmatch(data, status.end(), end + 2) is None:
        raise UnsupportedResponse
    text = data[status.end() : end].decode("utf-8", "surrogateescape")
    lines = (line.partition(":") for line in text.split("\r\n") if line)
    return Head((name, value.strip(" \t")) for name, _, value in lines), end + 4


def _may_be_usual(data: bytes) -> bool:
    start = b"HTTP/1.1 200"
    return data.startswith(start) or start.startswith(data)


@lru_cache(maxsize=1024)
def request_head(target: str, lines: tuple[tuple[str, str], ...]) -> bytes | None:
    """Write the head of a POST, up to the number after `Content-Length: `.

    Args:
        target: the path, with its query if any.
        lines: the fields, Host included.

    Returns:
        The bytes; None where something in it cannot be sent as it is.
    """
    if not _SENDABLE_TARGET.fullmatch(target):
        return None
    for name, value in lines:
        if not (_SENDABLE_NAME.fullmatch(name) and _SENDABLE_VALUE.fullmatch(value)):
            return None
    fields = "".join(f"{name}: {value}\r\n" for name, value in lines)
    return f"POST {target} HTTP/1.1\r\n{fields}Content-Length: ".encode("ascii")
