"""JSON in and out: orjson where it is installed, the standard library else.

Both refuse what would not survive the way to an upstream: NaN and infinities, lone
surrogates, numbers too large to be sent on, nesting too deep to be walked.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

try:
    import orjson
except ImportError:  # pragma: no cover - the test environment has it
    orjson = None  # type: ignore[assignment,unused-ignore]

_FAULTS = (ValueError, RecursionError, TypeError)


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


def loads_exact(data: bytes) -> Any:
    """Parse JSON keeping every integer whole (orjson makes long ones floats); for callers' bodies.

    Raises:
        JSONError: it is not JSON; the text says where the parser stopped.
    """
    try:
        text = data.decode("utf-8")
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
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
