"""A caller who writes bytes, and sees what comes back."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from nexus_gateway.testing import Served

_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3}) ")
CHAT = b'{"stream":%b,"messages":[{"role":"user","content":"x"}]}'


class Seen(NamedTuple):
    """What came back: all of it, and whether the connection was closed after it."""

    data: bytes
    closed: bool

    @property
    def statuses(self) -> list[int]:
        """The status of each answer."""
        return [int(status) for status in _STATUS.findall(self.data)]


def asking(*fields: bytes, stream: bool = False, body: bytes | None = None) -> bytes:
    """Make a chat's request, with more header lines."""
    body = CHAT % (b"true" if stream else b"false") if body is None else body
    lines = (b"POST /v1/chat/completions HTTP/1.1", b"Host: x", *fields)
    return b"\r\n".join((*lines, b"Content-Length: %d" % len(body), b"", body))


@asynccontextmanager
async def connected(
    served: Served, limit: int = 2**16
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect to a gateway; the connection is broken at the end."""
    port = int(served.url.rsplit(":", 1)[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=limit)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def say(served: Served, data: bytes, *, patience_s: float = 0.1) -> Seen:
    """Send bytes; return what came until the connection was closed or nothing more came."""
    seen = b""
    async with connected(served) as (reader, writer):
        writer.write(data)
        while True:
            try:
                async with asyncio.timeout(patience_s):
                    piece = await reader.read(2**16)
            except TimeoutError:
                return Seen(seen, closed=False)
            except ConnectionError:
                return Seen(seen, closed=True)
            if not piece:
                return Seen(seen, closed=True)
            seen += piece
