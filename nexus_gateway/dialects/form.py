"""A multipart form on its way to an upstream: read up to the file, never held as a whole.

By RFC 7578. Clients send the fields before the file; those are read, and from the head of the file
on the body passes as it comes. Where `model` is not among them, a short body is read to its end to
look for it; a long one passes with whatever model it names.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from email.message import Message
from email.parser import BytesHeaderParser

from nexus_gateway.dialects.body import UNTRUSTED
from nexus_gateway.dialects.dialect import Pieces
from nexus_gateway.errors import InvalidRequest, UnsupportedMedia

LONGEST_FIELDS = 256 * 1024
# So much of a body is kept for another attempt; a longer one can be sent once.
LONGEST_KEPT = 1024 * 1024
_CRLF = b"\r\n"


def boundary_of(content_type: str) -> bytes:
    """Return the boundary that a `Content-Type` names.

    Raises:
        UnsupportedMedia: it is no multipart form.
    """
    head = Message()
    head["Content-Type"] = content_type
    boundary = head.get_boundary()
    if head.get_content_type() != "multipart/form-data" or not boundary or not boundary.isascii():
        raise UnsupportedMedia("Send the body as Content-Type: multipart/form-data.")
    return boundary.encode()


@dataclass(frozen=True, slots=True)
class Part:
    """A field before the file."""

    name: str
    head: bytes
    value: bytes


@dataclass(slots=True)
class _Reading:
    """What is known of a body so far.

    Args:
        fields: the fields, of both sides of the file.
        first: those before it.
        file_at: where the file's part begins; None as long as it has not come.
        file_end: where the boundary behind the file begins.
        whole: whether the last boundary has come.
    """

    fields: list[Part] = field(default_factory=list)
    first: list[Part] = field(default_factory=list)
    file_at: int | None = None
    file_end: int | None = None
    whole: bool = False

    @property
    def model_is_first(self) -> bool:
        return any(part.name == "model" for part in self.first)


def _read(data: bytes, mark: bytes) -> _Reading:
    """Read as much of a body as has come; `mark` is the boundary with its dashes in front.

    Raises:
        InvalidRequest: it is no multipart form.
    """
    if not data.startswith(mark[: len(data)]):
        raise InvalidRequest("The body is no multipart form: it does not begin with its boundary.")
    reading, at = _Reading(), 0
    while True:
        begin = at + len(mark) + len(_CRLF)
        if data[begin - len(_CRLF) : begin] == b"--":
            reading.whole = True
            return reading
        end = data.find(_CRLF + mark, begin)
        head, found, value = data[begin : end if end >= 0 else len(data)].partition(_CRLF + _CRLF)
        if not found:
            if end >= 0:
                raise InvalidRequest("The body is no multipart form: a part has no head.")
            return reading
        message = BytesHeaderParser().parsebytes(head + _CRLF)
        name = str(message.get_param("name", "", header="content-disposition"))
        is_file = message.get_filename() is not None or name == "file"
        if is_file and reading.file_at is None:
            reading.file_at, reading.first = at, list(reading.fields)
        if end < 0:
            return reading
        at = end + len(_CRLF)
        if is_file:
            reading.file_end = at
        else:
            reading.fields.append(Part(name, head, value))


class Form:
    """A multipart body: its fields are read, its file is passed on.

    Args:
        content_type: the caller's, boundary included.
        mark: the boundary with its dashes in front.
        fields: those that were read.
        begun: what was read of the body behind them.
        rest: the rest of the body, piece by piece.
        length: of all that comes behind the fields, in bytes; None when unknown.
        names_model: whether a field that was not read may name the model.

    Attributes:
        replayable: whether it can be sent (once more).
        waits: whether it is the caller who lets himself be waited for.
        on_piece: called whenever a piece has come from the caller.
    """

    def __init__(
        self,
        content_type: str,
        mark: bytes,
        fields: list[Part],
        begun: bytes,
        rest: AsyncIterator[bytes],
        length: int | None,
        *,
        names_model: bool,
    ) -> None:
        self.content_type = content_type
        self.replayable = True
        self.waits = False
        self.on_piece: Callable[[], None] | None = None
        self._mark = mark
        self._fields = fields
        self._kept = [begun]
        self._kept_size = len(begun)
        self._rest = rest
        self._length = length
        self._names_model = names_model

    def value(self, name: str) -> str | None:
        """Return a field's text, None when it was not read.

        Raises:
            InvalidRequest: it is no text.
        """
        for part in self._fields:
            if part.name == name:
                try:
                    return part.value.decode()
                except UnicodeDecodeError:
                    raise InvalidRequest(f"`{name}` is not UTF-8.", param=name) from None
        return None

    def encode(self, model: str) -> Pieces:
        """Return the body with `model` in its place, first of all fields."""
        named = Part("model", b'Content-Disposition: form-data; name="model"', model.encode())
        others = [part for part in self._fields if part.name not in UNTRUSTED | {"model"}]
        head = b"".join(
            self._mark + _CRLF + p.head + _CRLF + _CRLF + p.value + _CRLF
            for p in ([] if self._names_model else [named]) + others
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
        while piece := await self._next():
            self._kept_size += len(piece)
            if self._kept_size > LONGEST_KEPT:
                self._kept.clear()
                self.replayable = False
            else:
                self._kept.append(piece)
            yield piece

    async def _next(self) -> bytes:
        self.waits = True
        piece = await anext(self._rest, b"")
        self.waits = False
        if self.on_piece is not None:
            self.on_piece()
        return piece


async def read_form(content_type: str, pieces: AsyncIterator[bytes], length: int | None) -> Form:
    """Read a form as far as it must be known.

    Args:
        content_type: the caller's.
        pieces: the body.
        length: of the whole body in bytes, None when unknown.

    Raises:
        UnsupportedMedia: it is said to be something else.
        InvalidRequest: it is no multipart form with a file.
    """
    mark = b"--" + boundary_of(content_type)
    data, reading = b"", _Reading()
    async for piece in pieces:
        data += piece
        reading = _read(data, mark)
        at = reading.file_at
        enough = reading.model_is_first or (at is not None and len(data) - at > LONGEST_KEPT)
        if at is not None and enough:
            left = None if length is None else length - at
            about = (content_type, mark, reading.first, data[at:], pieces, left)
            return Form(*about, names_model=not reading.model_is_first)
        if reading.whole:
            break
        if at is None and len(data) > LONGEST_FIELDS:
            raise InvalidRequest("The fields before the file are too long.")
    if not reading.whole:
        raise InvalidRequest("The form was cut off: its last boundary is missing.")
    if reading.file_at is None:
        raise InvalidRequest(
            "The form has no part `file`; add the audio (with curl: -F file=@speech.wav).",
            param="file",
        )
    file = data[reading.file_at : reading.file_end] + mark + b"--" + _CRLF
    about = (content_type, mark, reading.fields, file, _nothing(), len(file))
    return Form(*about, names_model=False)


async def _nothing() -> AsyncIterator[bytes]:
    """Give no piece more."""
    return
    yield b""
