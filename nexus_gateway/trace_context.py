"""The W3C's trace context: how a caller says which trace a request belongs to.

What a caller sends is read strictly, and what goes up is written anew: never his own text. A
header that is not in order is as good as none, as the standard asks, and nobody is told of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
# Sampled, and random; a later version may mean something else by the others.
KNOWN_FLAGS = 0x03
MOST_MEMBERS = 32
LONGEST_STATE = 512
_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[!-~]*)?")
_KEY = re.compile(r"[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13}")
_VALUE = re.compile(r"[ -+\--<>-~]{0,255}[!-+\--<>-~]")


class Parent(NamedTuple):
    """A span of somebody else's.

    Args:
        trace_id: of its trace.
        span_id: its own.
        flags: those of KNOWN_FLAGS.
        state: what tracing systems on the way have to say, in pairs.
    """

    trace_id: int
    span_id: int
    flags: int
    state: tuple[tuple[str, str], ...] = ()


def read(parents: Sequence[str], states: Sequence[str]) -> Parent | None:
    """Read a caller's headers.

    Args:
        parents: the values of `traceparent`.
        states: the values of `tracestate`.

    Returns:
        The span that called; None where none is named, or not in order.
    """
    if len(parents) != 1 or len(parents[0]) > LONGEST_STATE:
        return None
    found = _PARENT.fullmatch(parents[0].strip())
    if found is None:
        return None
    version, trace, span, flags, more = found.groups()
    trace_id, span_id = int(trace, 16), int(span, 16)
    if version == "ff" or (version == "00" and more is not None) or not (trace_id and span_id):
        return None
    return Parent(trace_id, span_id, int(flags, 16) & KNOWN_FLAGS, _state(",".join(states)))


def _state(text: str) -> tuple[tuple[str, str], ...]:
    """Read the state; all of it is dropped where any is not in order."""
    if not text or len(text) > LONGEST_STATE:
        return ()
    pairs: dict[str, str] = {}
    for member in text.split(","):
        key, _, value = member.strip(" \t").partition("=")
        if not key and not value:
            continue
        if not _KEY.fullmatch(key) or not _VALUE.fullmatch(value) or key in pairs:
            return ()
        pairs[key] = value
    return tuple(pairs.items()) if len(pairs) <= MOST_MEMBERS else ()


def write(parent: Parent) -> dict[str, str]:
    """Write the headers that name a span as the caller."""
    trace, span, flags, state = parent
    head = {TRACEPARENT: f"00-{trace:032x}-{span:016x}-{flags & KNOWN_FLAGS:02x}"}
    if state:
        head[TRACESTATE] = ",".join(f"{key}={value}" for key, value in state)
    return head
