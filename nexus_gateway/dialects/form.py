"""A multipart form on its way to an upstream: read up to the file, never held as a whole.

By RFC 7578. Clients send the fields before the file; those are read. From the head of the file on
the body passes as it comes, whatever follows it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from email.message import Message
from email.parser import BytesHeaderParser

from nexus_gateway.dialects.body import UNTRUSTED
from nexus_gateway.dialects.dialect import Pieces
from nexus_gateway.errors import InvalidRequest

LONGEST_FIELDS = 256 * 1024
# So much of a body is kept for another attempt; a longer one can be sent once.
LONGEST_KEPT = 1024 * 1024
_CRLF = b"\r\n"


def boundary_of(content_type: str) -> bytes:
    """Return the boundary that a `Content-Type` names.

    Raises:
        InvalidRequest: it is no multipart form.
    """
    head = Message()
    head["Content-Type"] = content_type
    boundary = head.get_boundary()
    if head.get_content_type() != "multipart/form-data" or not boundary or not boundary.isascii():
        raise InvalidRequest("Send the body as Content-Type: multipart/form-data.")
    return boundary.encode()


@dataclass(frozen=True, slots=True)
class Part:
    """A field before the file."""

    name: str
    head: bytes
    value: bytes


@dataclass(slots=True)
class _Start:
    """What stands before the file: fields, and how many bytes they took."""

    parts: list[Part] = field(default_factory=list)
    size: int = 0
    file_seen: bool = False


def _split_head(part: bytes) -> tuple[Message, bytes, bytes] | None:
    head, found, value = part.partition(_CRLF + _CRLF)
    return (BytesHeaderParser().parsebytes(head + _CRLF), head, value) if found else None


def read_start(data: bytes, boundary: bytes) -> _Start | None:
    """Read the fields before the file.

    Args:
        data: the beginning of the body.
        boundary: without its dashes.

    Returns:
        The fields, or None when more of the body is needed to tell.

    Raises:
        InvalidRequest: it is no multipart form.
    """
    mark = b"--" + boundary
    if not data.startswith(mark[: len(data)]):
        raise InvalidRequest("The body is no multipart form: it does not begin with its boundary.")
    start = _Start()
    while True:
        begin = start.size + len(mark)
        if data[begin : begin + 2] == b"--":
            return start
        end = data.find(_CRLF + mark, begin)
        found = _split_head(data[begin + 2 : end if end >= 0 else len(data)])
        if found is None:
            if end >= 0:
                raise InvalidRequest("The body is no multipart form: a part has no head.")
            return None
        message, head, value = found
        name = message.get_param("name", header="content-disposition")
        if message.get_filename() is not None or name == "file":
            start.file_seen = True
            return start
        if end < 0:
            return None
        start.parts.append(Part(str(name or ""), head, value))
        start.size = end + len(_CRLF)


class Form:
    """A multipart body: its fields are read, its file is passed on.

    Args:
        content_type: the caller's, boundary included.
        boundary: without its dashes.
        parts: the fields before the file.
        begun: what was read of the body behind those fields.
        rest: the rest of the body, piece by piece.
        length: of all that comes behind the fields, in bytes; None when unknown.
    """

    def __init__(
        self,
        content_type: str,
        boundary: bytes,
        parts: list[Part],
        begun: bytes,
        rest: AsyncIterator[bytes],
        length: int | None,
    ) -> None:
        self.content_type = content_type
        self._boundary = boundary
        self._parts = parts
        self._kept = [begun]
        self._kept_size = len(begun)
        self._rest = rest
        self._length = length
        self.replayable = True

    def value(self, name: str) -> str | None:
        """Return a field's text, None when it does not stand before the file.

        Raises:
            InvalidRequest: it is no text.
        """
        for part in self._parts:
            if part.name == name:
                try:
                    return part.value.decode()
                except UnicodeDecodeError:
                    raise InvalidRequest(f"`{name}` is not UTF-8.", param=name) from None
        return None

    def encode(self, model: str) -> Pieces:
        """Return the body with `model` in its place, first of all fields."""
        named = Part("model", b'Content-Disposition: form-data; name="model"', model.encode())
        others = [part for part in self._parts if part.name not in UNTRUSTED | {"model"}]
        head = b"".join(
            b"--" + self._boundary + _CRLF + p.head + _CRLF + _CRLF + p.value + _CRLF
            for p in [named, *others]
        )
        length = None if self._length is None else len(head) + self._length
        return Pieces(self._pieces(head), length)

    async def _pieces(self, head: bytes) -> AsyncIterator[bytes]:
        """Give the body; what is short enough is kept for another attempt."""
        yield head
        given = 0
        while given < len(self._kept):
            yield self._kept[given]
            given += 1
        async for piece in self._rest:
            self._kept_size += len(piece)
            if self._kept_size > LONGEST_KEPT:
                self._kept.clear()
                self.replayable = False
            else:
                self._kept.append(piece)
            yield piece


async def read_form(content_type: str, pieces: AsyncIterator[bytes], length: int | None) -> Form:
    """Read a form up to its file.

    Args:
        content_type: the caller's.
        pieces: the body.
        length: of the whole body in bytes, None when unknown.

    Raises:
        InvalidRequest: it is no multipart form with a file.
    """
    boundary = boundary_of(content_type)
    data = b""
    async for piece in pieces:
        data += piece
        start = read_start(data, boundary)
        if start is not None and start.file_seen:
            left = None if length is None else length - start.size
            return Form(content_type, boundary, start.parts, data[start.size :], pieces, left)
        if start is not None:
            break
        if len(data) > LONGEST_FIELDS:
            raise InvalidRequest("The fields before the file are too long.")
    raise InvalidRequest("The form has no `file`.", param="file")
