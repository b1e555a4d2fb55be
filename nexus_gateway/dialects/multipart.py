"""Read a multipart form (RFC 7578) as it comes: each byte once, and strictly.

What could be read in two ways is refused: an upstream might read it in the other one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from nexus_gateway.errors import InvalidRequest, UnsupportedMedia

LONGEST_HEAD = 8 * 1024
MOST_FIELDS = 100
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
        if len(self.fields) > MOST_FIELDS:
            raise InvalidRequest("The form has too many fields.")
        self._at, self._head = end + len(CRLF), None
        return True

    def _open(self, begin: int) -> bool:
        """Read a part's boundary and head; False when more must come first, or nothing comes."""
        start = bytes(self.data[self._at : begin])
        if not (self._mark + CRLF).startswith(start) and start != self._mark + END:
            raise InvalidRequest(_NO_FORM + "it does not begin with its boundary.")
        self.whole = start == self._mark + END
        head_end = self.data.find(CRLF + CRLF, begin, begin + LONGEST_HEAD)
        if self.whole or (head_end < 0 and len(self.data) < begin + LONGEST_HEAD):
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
