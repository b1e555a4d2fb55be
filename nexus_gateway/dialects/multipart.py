"""A multipart form (RFC 7578) that is sent on while it arrives: parsed up to the file, strictly.

Clients send the fields before the file. Those are parsed; from the head of the file on, the body
is passed on as it arrives, never held as a whole. If `model` is not among those fields, a short
body is read to its end to look for it; a long one is passed on with whatever model it names.

A form that could be read in two ways is refused: an upstream might read it in the other one.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from nexus_gateway.dialects.body import UNTRUSTED
from nexus_gateway.errors import InvalidRequest, UnsupportedMedia

MAX_FIELDS_BYTES = 256 * 1024
# So much of a body is kept for another attempt; a longer one can be sent only once.
MAX_KEPT_BYTES = 1024 * 1024
MAX_HEAD_BYTES = 8 * 1024
MAX_FIELDS = 100
CRLF = b"\r\n"
END = b"--"
NOT_A_FORM = "Send the body as Content-Type: multipart/form-data."
_BOUNDARY = re.compile(
    r'multipart/form-data\s*;(?:[^"]*;)?\s*boundary='
    r'(?:"([!-~ ]{1,200})"|([!-~]{1,200}?))\s*(?:;.*)?',
    re.IGNORECASE,
)
_DISPOSITION = re.compile(rb'form-data((?:\s*;\s*[\w-]+\*?=(?:"(?:[^"\\]|\\.)*"|[^\s;"]+))*)\s*')
_PARAMETER = re.compile(rb'\s*;\s*([\w-]+\*?)=(?:"((?:[^"\\]|\\.)*)"|([^\s;"]+))')


async def read_form(
    content_type: str, pieces: AsyncIterator[bytes], length: int | None
) -> StreamedForm:
    """Parse a form as far as needed; `length` is the whole body's in bytes, None if unknown.

    UnsupportedMedia if the content type is another one, InvalidRequest if it has no file.
    """
    boundary = _BOUNDARY.fullmatch(content_type.strip())
    if boundary is None:
        raise UnsupportedMedia(NOT_A_FORM)
    parser = _Parser(END + (boundary[1] or boundary[2]).encode())
    async for piece in pieces:
        parser.feed(piece)
        file_at, size = parser.file_at, len(parser.data)
        if file_at is not None:
            first = parser.fields[: parser.fields_before_file]
            has_model = any(part.name == "model" for part in first)
            if has_model or size - file_at > MAX_KEPT_BYTES:
                begun, left = bytes(parser.data[file_at:]), length and length - file_at
                return StreamedForm(
                    content_type, parser.boundary, first, [begun], pieces, left, has_model
                )
        if parser.complete:
            break
        if file_at is None and size > MAX_FIELDS_BYTES:
            raise InvalidRequest("The fields before the file are too long.")
    if not parser.complete:
        raise InvalidRequest("The form was cut off: its last boundary is missing.")
    if parser.file_at is None:
        raise InvalidRequest(
            "The form has no part `file`; add the audio (with curl: -F file=@speech.wav).",
            param="file",
        )
    file = bytes(parser.data[parser.file_at : parser.file_end]) + parser.boundary + END + CRLF
    return StreamedForm(
        content_type, parser.boundary, parser.fields, [file], _nothing(), len(file), True
    )


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""


@dataclass(eq=False, repr=False)
class StreamedForm:
    """A form whose fields are parsed and whose file is passed on."""

    content_type: str
    _boundary: bytes
    _fields: list[_Part]  # those that were parsed
    _kept: list[bytes]  # what was read of the body behind them
    _rest: AsyncIterator[bytes]
    _length: int | None  # of what was read and the rest in bytes; None if unknown
    _knows_model: bool  # whether `model` was parsed, if the form has it
    replayable: bool = True
    is_waiting_for_caller: bool = False
    on_piece: Callable[[], None] | None = None  # called for each piece that arrives

    asks_usage = has_own_stream_options = False  # as of a JSON body
    size = 0

    def __post_init__(self) -> None:
        self._kept_size = sum(map(len, self._kept))

    def value(self, name: str) -> str | None:
        """Return a field's text, None if it was not parsed."""
        for part in self._fields:
            if part.name == name:
                try:
                    return part.value.decode()
                except UnicodeDecodeError:
                    raise InvalidRequest(f"`{name}` is not UTF-8.", param=name) from None
        return None

    def encode(self, model: str) -> Pieces:
        """Return the body with this `model`, as the first field."""
        fields = [part for part in self._fields if part.name not in UNTRUSTED | {"model"}]
        if self._knows_model:
            name = b'Content-Disposition: form-data; name="model"'
            fields.insert(0, _Part("model", name, model.encode()))
        head = b"".join(
            self._boundary + CRLF + p.head + CRLF + CRLF + p.value + CRLF for p in fields
        )
        length = None if self._length is None else len(head) + self._length
        return Pieces(self._pieces(head), length)

    async def _pieces(self, head: bytes) -> AsyncIterator[bytes]:
        """Yield the body, and keep it for another attempt if it is short enough."""
        yield head
        sent = 0
        while sent < len(self._kept):
            yield self._kept[sent]
            sent += 1
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


@dataclass(eq=False, repr=False)
class Pieces:
    """A body that is sent piece by piece, once; its length in bytes is None if unknown."""

    _pieces: AsyncIterator[bytes]
    length: int | None

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._pieces


@dataclass(frozen=True, slots=True)
class _Part:
    name: str
    head: bytes
    value: bytes


@dataclass(eq=False, repr=False)
class _Parser:
    """Parses a form as it arrives, looking at each byte once."""

    boundary: bytes  # with the two dashes before it
    data: bytearray = field(default_factory=bytearray)  # all that has arrived
    fields: list[_Part] = field(default_factory=list)  # those before and after the file
    fields_before_file: int = 0
    file_at: int | None = None  # where the file's part begins, once it has arrived
    file_end: int | None = None  # where the boundary behind the file begins
    complete: bool = False  # whether the last boundary has arrived
    _at: int = 0  # where the boundary before the current part begins
    _searched: int = 0  # up to where the boundary behind it was searched for
    _open_part: tuple[str, bool, bytes, int] | None = None  # name, is file, head, value

    def feed(self, piece: bytes) -> None:
        """Take a piece; InvalidRequest if it is not a multipart form."""
        self.data += piece
        while not self.complete and self._parse_part():
            pass

    def _parse_part(self) -> bool:
        """Parse the next part; False if more must arrive first."""
        if self._open_part is None:
            self._open_part = self._parse_start(self._at + len(self.boundary) + len(CRLF))
        end = self._next_boundary() if self._open_part else None
        if self._open_part is None or end is None:
            return False
        name, is_file, head, value_at = self._open_part
        if is_file:
            self.file_end = end + len(CRLF)
        else:
            self.fields.append(_Part(name, head, bytes(self.data[value_at:end])))
        if len(self.fields) > MAX_FIELDS:
            raise InvalidRequest("The form has too many fields.")
        self._at, self._open_part = end + len(CRLF), None
        return True

    def _parse_start(self, begin: int) -> tuple[str, bool, bytes, int] | None:
        """Parse a part's boundary and head; None if more must arrive first, or nothing follows."""
        start = bytes(self.data[self._at : begin])
        if not (self.boundary + CRLF).startswith(start) and start != self.boundary + END:
            raise _malformed("it does not begin with its boundary")
        self.complete = start == self.boundary + END
        head_end = self.data.find(CRLF + CRLF, begin, begin + MAX_HEAD_BYTES)
        if self.complete or (head_end < 0 and len(self.data) < begin + MAX_HEAD_BYTES):
            return None
        if head_end < 0:
            raise _malformed("a part has no header lines, or too long ones")
        head = bytes(self.data[begin:head_end])
        name, is_file = _parse_head(head)
        value_at = head_end + len(CRLF + CRLF)
        # A part may be empty: then its head's last line end is the boundary's first.
        self._searched = value_at - len(CRLF)
        if is_file and self.file_at is None:
            self.file_at, self.fields_before_file = self._at, len(self.fields)
        return name, is_file, head, value_at

    def _next_boundary(self) -> int | None:
        """Return where the line end before the next boundary is; None if it has not arrived."""
        line = CRLF + self.boundary
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


def _parse_head(head: bytes) -> tuple[str, bool]:
    """Return a part's name, and whether it is a file; InvalidRequest unless that is unambiguous."""
    dispositions: list[bytes] = []
    for line in head.split(CRLF):
        name, colon, value = line.partition(b":")
        if not colon or b"\r" in line or b"\n" in line or name.strip() != name or not name:
            raise _malformed("a part has a malformed header line")
        if name.lower() == b"content-disposition":
            dispositions.append(value.strip())
    match = _DISPOSITION.fullmatch(dispositions[0]) if len(dispositions) == 1 else None
    if match is None:
        raise _malformed("a part needs one Content-Disposition: form-data")
    pairs = _PARAMETER.findall(match[1])
    parameters = {name.lower(): quoted or plain for name, quoted, plain in pairs}
    if b"name" not in parameters or b"name*" in parameters:
        raise _malformed("a part needs one plain `name`")
    name = parameters[b"name"].decode("utf-8", "replace")
    return name, name == "file" or not parameters.keys().isdisjoint((b"filename", b"filename*"))


def _malformed(problem: str) -> InvalidRequest:
    return InvalidRequest(f"The body is not a valid multipart form: {problem}.")
