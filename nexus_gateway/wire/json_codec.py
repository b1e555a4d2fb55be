"""JSON in and out: by orjson if it is installed, else by the standard library.

Both refuse what could not be sent on to an upstream: NaN and infinities, lone surrogates, numbers
that are too large, nesting that is too deep.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

try:
    import orjson
except ImportError:  # pragma: no cover - the test environment has it
    orjson = None  # type: ignore[assignment,unused-ignore]


_FAULTS = (ValueError, RecursionError, TypeError)
# orjson may drop digits of longer numbers; searching for them is quick only in short bodies.
_LONG_NUMBER = re.compile(rb"[0-9]{16}")
_SHORT_BODY = 64 * 1024


class JSONError(ValueError):
    """Bytes that are not JSON, or a value that has no JSON form. The text is safe to show."""


def loads(data: bytes | str) -> Any:
    """Parse what an upstream sent, with the fastest parser."""
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


_EXACT = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)


def loads_exact(data: bytes) -> Any:
    """Parse a caller's body with all digits of its integers (orjson makes long ones floats).

    The text of the JSONError names the line and column at which the parser stopped.
    """
    if orjson and len(data) <= _SHORT_BODY and not _LONG_NUMBER.search(data):
        try:
            return orjson.loads(data)
        except _FAULTS:
            pass  # the standard library accepts more, and its errors are more precise
    try:
        return _EXACT.decode(data.decode("utf-8"))
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


def dumps(value: Any) -> bytes:
    """Return compact UTF-8 JSON."""
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
