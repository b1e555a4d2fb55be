"""JSON in and out: orjson where it is installed, the standard library else.

Both refuse what would not survive the way to an upstream: NaN and infinities, lone
surrogates, numbers too large to be sent on, nesting too deep to be walked.
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
# What is longer may lose digits to orjson; looking for it pays where the body is not long.
_LONG_NUMBER = re.compile(rb"[0-9]{16}")
_SHORT_BODY = 64 * 1024


class JSONError(ValueError):
    """Bytes that are no JSON, or a value that has no JSON form. The text is our own."""


def _refuse_constant(name: str) -> NoReturn:
    raise JSONError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise JSONError("a number is too large")
    return number


def loads(data: bytes | str) -> Any:
    """Parse JSON with whichever parser is fastest; for what upstreams send.

    Raises:
        JSONError: it is not JSON.
    """
    try:
        return orjson.loads(data) if orjson else json.loads(data)
    except _FAULTS as error:
        raise JSONError("not JSON") from error


_EXACT = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)


def loads_exact(data: bytes) -> Any:
    """Parse JSON keeping every integer whole (orjson makes long ones floats); for callers' bodies.

    Raises:
        JSONError: it is not JSON; the text says where the parser stopped.
    """
    if orjson and len(data) <= _SHORT_BODY and not _LONG_NUMBER.search(data):
        try:
            return orjson.loads(data)
        except _FAULTS:
            pass  # the standard library takes more, and says what is wrong
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
    """Return compact UTF-8 JSON.

    Raises:
        JSONError: the value has no JSON form (a lone surrogate, nested too deeply).
    """
    if orjson:
        try:
            return orjson.dumps(value)
        except _FAULTS:
            pass  # integers beyond 64 bits and deeper nesting: the standard library can
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8")
    except _FAULTS as error:
        raise JSONError("a value has no JSON form (a lone surrogate, or too deep)") from error
