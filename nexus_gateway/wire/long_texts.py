"""The long texts of large JSON, which are handled apart and piece by piece.

A parser needs a whole text twice, in characters of up to four bytes, and lets no other thread run
in the meantime. So a short stand-in takes the place of each long text before JSON is parsed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence

SLICE = 64 * 1024
# From the opening quote to behind the closing one.
Span = tuple[int, int]
_IS_NAME = re.compile(rb"[ \t\r\n]*+:")
NEAR = 1024  # bytes before the end of a slice, in which it is cut if possible
# Up to a place that is in no escape, nor between the two halves of a pair.
_BETWEEN = re.compile(rb"[^\\]{5}(?=[^\\])")
# Whole characters and escapes; the two halves of a pair stay together.
_WHOLE = re.compile(
    rb"(?:[^\\]++|\\[^u]|\\u(?![dD][89abAB])[0-9a-fA-F]{4}"
    rb"|\\u[dD][89abAB][0-9a-fA-F]{2}(?:\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?=.{6})))*+",
    re.DOTALL,
)
_CONTINUES, _FIRST_BITS = 0x80, 0xC0  # of a byte in the middle of a character


class WrongText(ValueError):
    """A text that is not JSON, `at` this byte."""

    def __init__(self, why: str, at: int) -> None:
        super().__init__(why)
        self.why = why
        self.at = at


def find(data: bytes) -> list[Span]:
    """Return the texts of more than SLICE bytes, without names; of what is not JSON, anything."""
    found = []
    start, inside, is_escaped = 0, False, False
    for at in range(0, len(data), SLICE):
        piece = data[at : at + SLICE]
        if is_escaped:
            piece = b"x" + piece[1:]
            is_escaped = False
        if b"\\" in piece:
            piece = piece.replace(b"\\\\", b"xx").replace(b'\\"', b"xx")
            is_escaped = piece.endswith(b"\\")
        quotes = piece.count(b'"')
        if not quotes:
            continue
        end = at + piece.index(b'"') + 1
        if inside and end - start > SLICE and not _IS_NAME.match(data, end):
            found.append((start, end))
        inside ^= quotes % 2 == 1
        if inside:
            start = at + piece.rindex(b'"')
    return found


def taken_out(data: bytes, texts: Sequence[Span], stand_in: Callable[[int], bytes]) -> bytes:
    """Return JSON with stand-ins for texts, each made from its number."""
    view, at = memoryview(data), 0
    pieces: list[bytes | memoryview] = []
    for number, (start, end) in enumerate(texts):
        pieces += view[at:start], stand_in(number)
        at = end
    return b"".join((*pieces, view[at:]))


def check(data: bytes, text: Span) -> None:
    """Read a text; WrongText if it is not JSON."""
    for _ in _pieces(data, text):
        pass


def decode(data: bytes, text: Span) -> str:
    """Return a text's characters; WrongText if it is not JSON."""
    return "".join(_pieces(data, text))


def _pieces(data: bytes, text: Span) -> Iterator[str]:
    at, last = text[0] + 1, text[1] - 1
    while at < last:
        end = min(at + SLICE, last)
        if end < last:
            whole = _BETWEEN.search(data, max(at, end - NEAR), end) or _WHOLE.match(data, at, end)
            assert whole is not None
            end = whole.end()
            while data[end] & _FIRST_BITS == _CONTINUES:
                end -= 1
            if end <= at:  # nothing whole begins here
                end = min(at + SLICE, last)
        try:
            piece: str = json.loads(f'"{data[at:end].decode("utf-8")}"')
        except UnicodeDecodeError as error:
            raise WrongText("not UTF-8", at + error.start) from error
        except json.JSONDecodeError as error:
            before = error.doc[1 : error.pos].encode("utf-8")
            raise WrongText(error.msg, at + len(before)) from error
        yield piece
        at = end
