"""A socket for requests that no client would send, and one that nobody must ever connect to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass


async def raw(url: str, request: bytes, within_s: float = 30) -> tuple[int, bytes, bytes]:
    """Send bytes and read up to the connection's end; return the status, the head, the body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    try:
        writer.write(request)
        answer = await asyncio.wait_for(reader.read(), within_s)
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), head, body


def request(line: str, *headers: str, body: bytes = b"", host: str = "127.0.0.1") -> bytes:
    """Write a request after which the connection ends."""
    lines = [f"{line} HTTP/1.1", f"Host: {host}", *headers, f"Content-Length: {len(body)}"]
    head = "\r\n".join([*lines, "Connection: close", "", ""])
    return head.encode("latin-1") + body


@dataclass
class Canary:
    """Where a secret would arrive if somebody could send it there."""

    url: str = ""
    visits: int = 0


@contextlib.asynccontextmanager
async def canary() -> AsyncIterator[Canary]:
    """Listen, and count who comes."""
    bird = Canary()

    async def visit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        bird.visits += 1
        writer.close()

    server = await asyncio.start_server(visit, "127.0.0.1", 0)
    async with server:
        bird.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield bird
