"""Reads the heads of requests that are strictly plain (RFC 9112); all others are for aiohttp.

If two parsers disagree about where a request ends, one caller's bytes become another's request. So
nothing is guessed: a head is plain only if there is one way to read it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from multidict import CIMultiDict

from nexus_gateway.dialects import DIALECTS
from nexus_gateway.dialects.base import Dialect
from nexus_gateway.dialects.responses import RESPONSES
from nexus_gateway.web.middleware import V1
from nexus_gateway.web.request import EXPLAIN, HEDGE, TIMEOUT

MAX_HEAD_BYTES = 8000
MAX_FIELDS = 64
MAX_KNOWN = 512
LONGEST_KNOWN = 2000
_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\nContent-Length: (0|[1-9][0-9]{0,8})(?=\r\n)", re.IGNORECASE)
_REQUEST_LINE = re.compile(rb"(GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS) (/[!-~]*) HTTP/1\.1")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[\t ]*((?:[!-~](?:[\t -~]*[!-~])?)?)[\t ]*")
# They decide where a request ends, or whether another follows.
_FRAMING = ("Content-Length", "Transfer-Encoding", "Upgrade", "Expect", "Trailer", "TE")
# What the main path alone does.
_UNUSUAL = ("Content-Encoding", "Origin", "Via", EXPLAIN, HEDGE, TIMEOUT)
_DIALECTS: Mapping[bytes, Dialect] = {
    path.encode(): dialect
    for full, dialect in DIALECTS.items()
    if not dialect.reads_pieces and dialect is not RESPONSES  # which may need its store
    for path in (full, full.removeprefix(V1))
}


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """A plain head, without its Content-Length; `dialect` is set if it may take the fast path."""

    headers: CIMultiDict[str]
    dialect: Dialect | None


# Most heads of a program are the same but for the length. None for those that are not plain.
_known: dict[tuple[bytes, bytes], Head | None] = {}


def read_head(data: bytes) -> tuple[Head, int, int] | None:
    """Return a request's head, where its body begins and where it ends.

    None if the head is not plain, or not complete.
    """
    end = data.find(_END, 0, MAX_HEAD_BYTES)
    if end < 0:
        return None
    length = _LENGTH.search(data, 0, end + 2)
    if length is None:
        key, size = (data[:end], b""), 0
    else:
        key, size = (data[: length.start()], data[length.end() : end]), int(length[1])
    try:
        head = _known[key]
    except KeyError:
        head = _parse(*key)
        if end <= LONGEST_KNOWN:
            if len(_known) >= MAX_KNOWN:
                _known.clear()
            _known[key] = head
    return None if head is None else (head, end + 4, end + 4 + size)


def _parse(before: bytes, after: bytes) -> Head | None:
    line, *fields = (before + after).split(b"\r\n")
    request = _REQUEST_LINE.fullmatch(line)
    if request is None or len(fields) > MAX_FIELDS:
        return None
    headers: CIMultiDict[str] = CIMultiDict()
    for field in fields:
        found = _FIELD.fullmatch(field)
        if found is None or (name := found[1].decode()) in headers:
            return None
        headers[name] = found[2].decode()
    is_kept = headers.get("Connection", "keep-alive").lower() == "keep-alive"
    if not is_kept or "Host" not in headers or any(name in headers for name in _FRAMING):
        return None
    is_usual = request[1] == b"POST" and not any(name in headers for name in _UNUSUAL)
    return Head(headers, _DIALECTS.get(request[2]) if is_usual else None)
