"""A multipart form on its way to an upstream: read up to the file, never held as a whole.

Clients send the fields before the file; those are read, and from the head of the file
on the body passes as it comes. Where `model` is not among them, a short body is read to its end to
look for it; a long one passes with whatever model it names.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from nexus_gateway.dialects.body import UNTRUSTED
from nexus_gateway.dialects.dialect import Pieces
from nexus_gateway.dialects.multipart import CRLF, END, Part, Reader, boundary_of
from nexus_gateway.errors import InvalidRequest

LONGEST_FIELDS = 256 * 1024
# So much of a body is kept for another attempt; a longer one can be sent once.
LONGEST_KEPT = 1024 * 1024


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
            self._mark + CRLF + p.head + CRLF + CRLF + p.value + CRLF
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
    reader = Reader(mark)
    async for piece in pieces:
        reader.feed(piece)
        at, size = reader.file_at, len(reader.data)
        enough = reader.model_is_first or (at is not None and size - at > LONGEST_KEPT)
        if at is not None and enough:
            left = None if length is None else length - at
            about = (content_type, mark, reader.first, bytes(reader.data[at:]), pieces, left)
            return Form(*about, names_model=not reader.model_is_first)
        if reader.whole:
            break
        if at is None and size > LONGEST_FIELDS:
            raise InvalidRequest("The fields before the file are too long.")
    if not reader.whole:
        raise InvalidRequest("The form was cut off: its last boundary is missing.")
    if reader.file_at is None:
        raise InvalidRequest(
            "The form has no part `file`; add the audio (with curl: -F file=@speech.wav).",
            param="file",
        )
    file = bytes(reader.data[reader.file_at : reader.file_end]) + mark + END + CRLF
    about = (content_type, mark, reader.fields, file, _nothing(), len(file))
    return Form(*about, names_model=False)


async def _nothing() -> AsyncIterator[bytes]:
    """Give no piece more."""
    return
    yield b""
