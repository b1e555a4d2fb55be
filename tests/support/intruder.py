"""Raw requests that no client would send, and a server that must never be contacted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass


async def raw(url: str, request: bytes, within_s: float = 30) -> tuple[int, bytes, bytes]:
    """Send bytes and read until the connection ends; return status, head and body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    try:
        writer.write(request)
        answer = await asyncio.wait_for(reader.read(), within_s)
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), head, body


def request(line: str, *headers: str, body: bytes = b"", host: str = "127.0.0.1") -> bytes:
    """Return a request with `Connection: close`."""
    lines = [f"{line} HTTP/1.1", f"Host: {host}", *headers, f"Content-Length: {len(body)}"]
    head = "\r\n".join([*lines, "Connection: close", "", ""])
    return head.encode("latin-1") + body


@dataclass
class Canary:
    """A server that a leaked secret would reach."""

    url: str = ""
    visits: int = 0


@contextlib.asynccontextmanager
async def canary() -> AsyncIterator[Canary]:
    """Listen and count connections."""
    target = Canary()

    async def visit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target.visits += 1
        writer.close()

    server = await asyncio.start_server(visit, "127.0.0.1", 0)
    async with server:
        target.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield target
