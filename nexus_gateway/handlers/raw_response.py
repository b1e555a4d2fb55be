"""An answer written straight to the caller's transport: one write where two would do.

aiohttp's own response builds its head from many parts and writes through several layers; each
costs as much as a chunk of a stream. Here the head waits for the first bytes of the body and
leaves together with them, a chunk is one `write`, and whoever has bytes in hand can send them
without a task (`send`). What it needs of aiohttp is documented: a response may override
`prepare`, `write` and `write_eof`, and a request has a transport and a writer that drains it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from email.utils import formatdate
from functools import lru_cache

from aiohttp import web


class RawResponse(web.StreamResponse):
    """A 200 in HTTP/1.1: in chunks, or in one piece where `body` is given.

    Args:
        request: the caller's.
        headers: all but what tells the body's length, and the date.
        body: the whole answer.
        lasting: whether the connection may be used again.
    """

    def __init__(
        self,
        request: web.Request,
        headers: Mapping[str, str],
        body: bytes | None = None,
        *,
        lasting: bool,
    ) -> None:
        super().__init__()
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the caller has left")
        self._request = request
        self._transport = transport
        self._protocol = request.protocol
        self._lasting = lasting
        self._whole = body
        self._over = False
        length = "Transfer-Encoding: chunked" if body is None else f"Content-Length: {len(body)}"
        self._unsent_head = _head(headers, length, lasting=self._lasting)

    @property
    def prepared(self) -> bool:
        """Whether the head has gone out."""
        return not self._unsent_head

    @property
    def keep_alive(self) -> bool | None:
        """Whether the connection may be used again."""
        return self._lasting

    @property
    def full(self) -> bool:
        """Whether the caller does not take what is sent so fast; then `drain`."""
        return self._protocol.writing_paused

    async def drain(self) -> None:
        """Wait until the caller takes more.

        Raises:
            ConnectionError: it never will.
        """
        await self._request.writer.drain()
        if self._transport.is_closing():
            raise ConnectionResetError("the caller has left")

    async def prepare(self, request: web.BaseRequest) -> None:
        """Send a whole answer; a stream's head waits for its first bytes."""
        if self._whole is not None and self._unsent_head:
            self._write(self._whole)
            self._over = True

    def push(self, data: bytes) -> bool:
        """Send a chunk of a stream that has begun; False when the caller takes no more for now."""
        if self._transport.is_closing():
            return False  # `drain` says why
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return not self._protocol.writing_paused

    def send(self, data: bytes) -> None:
        """Send a chunk without waiting, and the head if it has not gone yet."""
        self._write(b"%x\r\n%b\r\n" % (len(data), data))

    def send_last(self, data: bytes) -> None:
        """Send the last chunk, which may be empty, and the end."""
        if not self._over:
            self._over = True
            self._write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n")

    def _write(self, data: bytes) -> None:
        if self._unsent_head:
            data, self._unsent_head = self._unsent_head + data, b""
            # By this aiohttp knows that no other head may be written.
            self._request.writer.output_size += len(data)
        if self._transport.is_closing():
            raise ConnectionResetError("the caller has left")
        self._transport.write(data)

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send a chunk, and wait while the caller takes no more.

        Raises:
            ConnectionError: the caller has left.
        """
        self.send(bytes(data))
        if self.full:
            await self.drain()

    async def write_eof(self, data: bytes = b"") -> None:
        """End the answer; asked again, wait until the caller has taken most of it.

        Who sends requests without reading the answers must not make them pile up.

        Raises:
            ConnectionError: the caller has left.
        """
        if not self._over:
            self.send_last(data)
        elif self.full:
            await self.drain()


def _head(headers: Mapping[str, str], length: str, *, lasting: bool) -> bytes:
    lines = [f"{name}: {value}" for name, value in headers.items()]
    if not lasting:
        lines.append("Connection: close")
    text = "\r\n".join(("HTTP/1.1 200 OK", *lines, length, f"Date: {_date(int(time.time()))}"))
    if text.count("\n") != len(lines) + 2 or text.count("\r") != len(lines) + 2 or "\0" in text:
        raise ValueError("a header's value has a line end in it")
    return f"{text}\r\n\r\n".encode("utf-8", "surrogateescape")


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)
