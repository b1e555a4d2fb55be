"""JSON in and out: by orjson if it is installed, else by the standard library.

Both refuse what could not be sent on to an upstream: NaN and infinities, lone surrogates, numbers
that are too large, nesting that is too deep.

orjson asks for 12 times the memory of what it parses, and for 8 times that of each text it writes.
Above LARGE the work is done in smaller steps, and that on a long text in pieces: in a thread, they
let the event loop run in between.
"""

from __future__ import annotations

import json
import math
import re
import secrets
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from nexus_gateway.wire import long_texts

try:
    import orjson
except ImportError:  # pragma: no cover - the test environment has it
    orjson = None  # type: ignore[assignment,unused-ignore]


_FAULTS = (ValueError, RecursionError, TypeError)
# orjson may drop digits of longer numbers; searching for them is quick only in short bodies.
_LONG_NUMBER = re.compile(rb"[0-9]{16}")
_SHORT_BODY = 64 * 1024
LARGE = 1024 * 1024
_SLICE = 64 * 1024


class JSONError(ValueError):
    """Bytes that are not JSON, or a value that has no JSON form. The text is safe to show."""


class TooManyNumbers(JSONError):
    pass


def loads(data: bytes | str) -> Any:
    """Parse what an upstream sent, with the fastest parser."""
    if len(data) > LARGE:
        return _decode_exact(data)
    try:
        return orjson.loads(data) if orjson else json.loads(data)
    except _FAULTS as error:
        raise JSONError("not JSON") from error


def _refuse_constant(name: str) -> NoReturn:
    raise JSONError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise JSONError("a number is too large")
    return number


def _same(value: dict[str, Any]) -> dict[str, Any]:
    return value


def _decoder(
    most_numbers: int, mark: str = "no mark", text: Callable[[int], str] = str
) -> json.JSONDecoder:
    """Return the standard library's parser, for one value.

    Other threads run only if it calls a Python function: it does for each number and each object.
    A number that begins with the mark is the stand-in of a text.
    """
    left = most_numbers

    def integer(digits: str) -> int:
        nonlocal left
        left -= 1
        if left < 0:
            raise TooManyNumbers(f"more than {most_numbers} numbers")
        return int(digits)

    def finite(digits: str) -> float | str:
        if digits.startswith(mark):
            return text(int(digits[len(mark) :]))
        integer("0")
        return _finite(digits)

    return json.JSONDecoder(
        parse_constant=_refuse_constant, parse_float=finite, parse_int=integer, object_hook=_same
    )


def loads_exact(data: bytes, most_numbers: int = sys.maxsize) -> Any:
    """Parse a caller's body with all digits of its integers (orjson makes long ones floats).

    The text of the JSONError names the line and column at which the parser stopped.
    TooManyNumbers if a long one has more than `most_numbers`.
    """
    if orjson and len(data) <= _SHORT_BODY and not _LONG_NUMBER.search(data):
        try:
            return orjson.loads(data)
        except _FAULTS:
            pass  # the standard library accepts more, and its errors are more precise
    return _decode_exact(data, most_numbers)


def _decode_exact(data: bytes | str, most_numbers: int = sys.maxsize) -> Any:
    try:
        if isinstance(data, bytes) and len(data) > LARGE and (texts := long_texts.find(data)):
            return _decode_apart(data, texts, most_numbers)
        return _decoder(most_numbers).decode(
            data if isinstance(data, str) else data.decode("utf-8")
        )
    except JSONError:
        raise
    except json.JSONDecodeError as error:
        raise JSONError(f"{error.msg} at line {error.lineno} column {error.colno}") from error
    except UnicodeDecodeError as error:
        raise JSONError(f"not UTF-8 at byte {error.start}") from error
    except RecursionError as error:
        raise JSONError("nested too deeply") from error
    except ValueError as error:
        raise JSONError("a number has too many digits") from error


def _decode_apart(data: bytes, texts: Sequence[long_texts.Span], most_numbers: int) -> Any:
    """Parse JSON and its long texts apart; a JSONError names the byte."""
    mark = f"0.{secrets.randbits(128)}e"  # nobody can guess such a number

    def text(number: int) -> str:
        return long_texts.decode(data, texts[number])

    def stand_in(number: int) -> bytes:
        return f" {mark}{number} ".encode()  # apart from digits beside it

    def byte_at(at: int) -> int:
        for number, (start, end) in enumerate(texts):
            if at > start:
                at += end - start - len(stand_in(number))
        return at

    rest = long_texts.taken_out(data, texts, stand_in)
    try:
        return _decoder(most_numbers, mark, text).decode(rest.decode("utf-8"))
    except long_texts.WrongText as error:
        raise JSONError(f"{error.why} at byte {error.at}") from error
    except json.JSONDecodeError as error:
        at = byte_at(len(error.doc[: error.pos].encode("utf-8")))
        raise JSONError(f"{error.msg} at byte {at}") from error
    except UnicodeDecodeError as error:
        raise JSONError(f"not UTF-8 at byte {byte_at(error.start)}") from error


def dumps(value: Any, size: int = 0) -> bytes:
    """Return compact UTF-8 JSON; `size` is about its length in bytes if that may be large."""
    if size > LARGE:
        return _dumps_large(value)
    if orjson:
        try:
            return orjson.dumps(value)
        except _FAULTS:
            pass  # integers beyond 64 bits and deeper nesting: the standard library supports them
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8")
    except _FAULTS as error:
        raise JSONError("a value has no JSON form (a lone surrogate, or too deep)") from error


def _dumps_large(value: Any) -> bytes:
    out = bytearray()
    try:
        _write(out, value)
    except _FAULTS as error:
        raise JSONError("a value has no JSON form (a lone surrogate, or too deep)") from error
    return bytes(out)


def _write(out: bytearray, value: Any) -> None:
    if type(value) is dict:
        mark = b"{"
        for name, child in value.items():
            out += mark + dumps({name: 0})[1:-2]
            _write(out, child)
            mark = b","
        out += b"}" if value else b"{}"
    elif type(value) is list:
        mark = b"["
        for child in value:
            out += mark
            _write(out, child)
            mark = b","
        out += b"]" if value else b"[]"
    elif type(value) is str and len(value) > _SLICE:
        out += b'"'
        for at in range(0, len(value), _SLICE):
            out += dumps(value[at : at + _SLICE])[1:-1]
        out += b'"'
    else:
        out += dumps(value)
