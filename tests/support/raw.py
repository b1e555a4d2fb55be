"""A caller and an upstream that send exact bytes."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from nexus_gateway.testing.gateway import Served
from nexus_gateway.testing.server import RESET_ON_CLOSE

_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3}) ")
CHAT = b'{"stream":%b,"messages":[{"role":"user","content":"x"}]}'


class Received(NamedTuple):
    """All bytes that were received, and whether the connection was closed."""

    data: bytes
    closed: bool

    @property
    def statuses(self) -> list[int]:
        """The status of each response."""
        return [int(status) for status in _STATUS.findall(self.data)]


def asking(*fields: bytes, stream: bool = False, body: bytes | None = None) -> bytes:
    """Return a chat request with additional header lines."""
    body = CHAT % (b"true" if stream else b"false") if body is None else body
    lines = (b"POST /v1/chat/completions HTTP/1.1", b"Host: x", *fields)
    return b"\r\n".join((*lines, b"Content-Length: %d" % len(body), b"", body))


@asynccontextmanager
async def connected(
    served: Served, limit: int = 2**16
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect to a gateway; abort the connection at the end."""
    port = int(served.url.rsplit(":", 1)[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=limit)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def exchange(served: Served, data: bytes, *, answers: int = 0) -> Received:
    """Send bytes; return all that was received until the connection closed.

    After `answers` heads, if not 0, it waits only briefly for more.
    """
    received = Received(b"", closed=False)
    async with connected(served) as (reader, writer):
        writer.write(data)
        while not received.closed:
            enough = 0 < answers <= len(received.statuses)
            try:
                async with asyncio.timeout(0.05 if enough else 5):
                    piece = await reader.read(2**16)
            except TimeoutError:
                break
            except ConnectionError:
                piece = b""
            received = Received(received.data + piece, closed=not piece)
    return received


# A response of an upstream.
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
EVENT = b'data: {"model":"m","choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":null}]}'
FINISH = b'data: {"model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}'
BODY = b"\n\n".join([EVENT % b"one ", EVENT % b"two", FINISH, b"data: [DONE]", b""])


def chunked(data: bytes, size: int = 50) -> bytes:
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"


class Wire:
    """A server that sends the given bytes, one response per request."""

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = list(answers)
        self.connections = 0
        self.served = 0
        self.sent = 0
        self.resets = False  # instead of closing a connection without an answer
        self.writers: list[asyncio.StreamWriter] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                self.served += 1
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                if answer is None:
                    if self.resets:
                        connection = writer.get_extra_info("socket")
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                        writer.transport.abort()
                    break
                writer.write(answer)
                await writer.drain()
                if b"Connection: close" in answer or b"HTTP/1.0" in answer:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def listening(wire: Wire, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    server = await asyncio.start_server(wire, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{port}/v1"
    finally:
        server.close()
        for writer in wire.writers:
            writer.close()
