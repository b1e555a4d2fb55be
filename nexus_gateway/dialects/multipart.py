"""Read a multipart form (RFC 7578) as it comes: each byte once, and strictly.

What could be read in two ways is refused: an upstream might read it in the other one.

A multipart form on its way to an upstream: read up to the file, never held as a whole.

Clients send the fields before the file; those are read, and from the head of the file
on the body passes as it comes. Where `model` is not among them, a short body is read to its end to
look for it; a long one passes with whatever model it names.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from nexus_gateway.dialects.base import Pieces
from nexus_gateway.dialects.body import UNTRUSTED
from nexus_gateway.errors import InvalidRequest, UnsupportedMedia

MAX_HEAD_BYTES = 8 * 1024
MAX_FIELDS = 100
CRLF = b"\r\n"
END = b"--"
_BOUNDARY = re.compile(
    r'multipart/form-data\s*;(?:[^"]*;)?\s*boundary='
    r'(?:"([!-~ ]{1,200})"|([!-~]{1,200}?))\s*(?:;.*)?',
    re.IGNORECASE,
)
_DISPOSITION = re.compile(rb'form-data((?:\s*;\s*[\w-]+\*?=(?:"(?:[^"\\]|\\.)*"|[^\s;"]+))*)\s*')
_PARAMETER = re.compile(rb'\s*;\s*([\w-]+\*?)=(?:"((?:[^"\\]|\\.)*)"|([^\s;"]+))')
_NO_FORM = "The body is no multipart form: "


def boundary_of(content_type: str) -> bytes:
    """Return the boundary that a `Content-Type` names.

    Raises:
        UnsupportedMedia: it is no multipart form.
    """
    found = _BOUNDARY.fullmatch(content_type.strip())
    if found is None:
        raise UnsupportedMedia("Send the body as Content-Type: multipart/form-data.")
    return (found[1] or found[2]).encode()


@dataclass(frozen=True, slots=True)
class Part:
    """A field beside the file."""

    name: str
    head: bytes
    value: bytes


def _read_head(head: bytes) -> tuple[str, bool]:
    """Return a part's name, and whether it is a file.

    Raises:
        InvalidRequest: it can be read in more than one way, or in none.
    """
    found: list[bytes] = []
    for line in head.split(CRLF):
        name, colon, value = line.partition(b":")
        if not colon or b"\r" in line or b"\n" in line or name.strip() != name or not name:
            raise InvalidRequest(_NO_FORM + "a part has a malformed head.")
        if name.lower() == b"content-disposition":
            found.append(value.strip())
    match = _DISPOSITION.fullmatch(found[0]) if len(found) == 1 else None
    if match is None:
        raise InvalidRequest(_NO_FORM + "a part needs one Content-Disposition: form-data.")
    pairs = _PARAMETER.findall(match[1])
    given = {name.lower(): quoted or plain for name, quoted, plain in pairs}
    if b"name" not in given or b"name*" in given:
        raise InvalidRequest(_NO_FORM + "a part needs one plain `name`.")
    told = given[b"name"].decode("utf-8", "replace")
    return told, told == "file" or not given.keys().isdisjoint((b"filename", b"filename*"))


class Reader:
    """Reads a body as it comes, each byte once.

    Args:
        mark: the boundary with its dashes in front.

    Attributes:
        data: what has come.
        fields: the fields, of both sides of the file.
        first: those before it.
        file_at: where the file's part begins; None as long as it has not come.
        file_end: where the boundary behind the file begins.
        whole: whether the last boundary has come.
    """

    def __init__(self, mark: bytes) -> None:
        self.data = bytearray()
        self.fields: list[Part] = []
        self.first: list[Part] = []
        self.file_at: int | None = None
        self.file_end: int | None = None
        self.whole = False
        self._mark = mark
        self._at = 0  # where the boundary of the part that is being read begins
        self._searched = 0  # up to where the boundary behind it was looked for
        self._head: tuple[str, bool, bytes, int] | None = None

    @property
    def model_is_first(self) -> bool:
        """Whether `model` stands before the file."""
        return any(part.name == "model" for part in self.first)

    def feed(self, piece: bytes) -> None:
        """Take a piece.

        Raises:
            InvalidRequest: it is no multipart form.
        """
        self.data += piece
        while not self.whole and self._read_part():
            pass

    def _read_part(self) -> bool:
        """Read the next part; False when more must come first."""
        begin = self._at + len(self._mark) + len(CRLF)
        if self._head is None and not self._open(begin):
            return False
        assert self._head is not None
        name, is_file, head, value_at = self._head
        end = self._next_boundary()
        if end is None:
            return False
        if is_file:
            self.file_end = end + len(CRLF)
        else:
            self.fields.append(Part(name, head, bytes(self.data[value_at:end])))
        if len(self.fields) > MAX_FIELDS:
            raise InvalidRequest("The form has too many fields.")
        self._at, self._head = end + len(CRLF), None
        return True

    def _open(self, begin: int) -> bool:
        """Read a part's boundary and head; False when more must come first, or nothing comes."""
        start = bytes(self.data[self._at : begin])
        if not (self._mark + CRLF).startswith(start) and start != self._mark + END:
            raise InvalidRequest(_NO_FORM + "it does not begin with its boundary.")
        self.whole = start == self._mark + END
        head_end = self.data.find(CRLF + CRLF, begin, begin + MAX_HEAD_BYTES)
        if self.whole or (head_end < 0 and len(self.data) < begin + MAX_HEAD_BYTES):
            return False
        if head_end < 0:
            raise InvalidRequest(_NO_FORM + "a part has no head, or too long a one.")
        head = bytes(self.data[begin:head_end])
        name, is_file = _read_head(head)
        value_at = head_end + len(CRLF + CRLF)
        # A part may be empty: then its head's last line end is the boundary's first.
        self._head, self._searched = (name, is_file, head, value_at), value_at - len(CRLF)
        if is_file and self.file_at is None:
            self.file_at, self.first = self._at, list(self.fields)
        return True

    def _next_boundary(self) -> int | None:
        """Return where the line end before the next boundary stands; None when it has not come."""
        line = CRLF + self._mark
        while (end := self.data.find(line, self._searched)) >= 0:
            after = bytes(self.data[end + len(line) : end + len(line) + 2])
            if len(after) < len(CRLF):
                self._searched = end
                return None
            if after in (CRLF, END):
                return end
            self._searched = end + 1
        self._searched = max(self._searched, len(self.data) - len(line) + 1)
        return None


MAX_FIELDS_BYTES = 256 * 1024
# So much of a body is kept for another attempt; a longer one can be sent once.
MAX_KEPT_BYTES = 1024 * 1024


class StreamedForm:
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
        self.is_waiting_for_caller = False
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
            if self._kept_size > MAX_KEPT_BYTES:
                self._kept.clear()
                self.replayable = False
            else:
                self._kept.append(piece)
            yield piece

    async def _next(self) -> bytes:
        self.is_waiting_for_caller = True
        piece = await anext(self._rest, b"")
        self.is_waiting_for_caller = False
        if self.on_piece is not None:
            self.on_piece()
        return piece


async def read_form(
    content_type: str, pieces: AsyncIterator[bytes], length: int | None
) -> StreamedForm:
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
        enough = reader.model_is_first or (at is not None and size - at > MAX_KEPT_BYTES)
        if at is not None and enough:
            left = None if length is None else length - at
            about = (content_type, mark, reader.first, bytes(reader.data[at:]), pieces, left)
            return StreamedForm(*about, names_model=not reader.model_is_first)
        if reader.whole:
            break
        if at is None and size > MAX_FIELDS_BYTES:
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
    return StreamedForm(*about, names_model=False)


async def _nothing() -> AsyncIterator[bytes]:
    """Give no piece more."""
    return
    yield b""
