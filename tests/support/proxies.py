"""An HTTP proxy on loopback, which knows names that no resolver does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping

REFUSED = b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n"


class Proxy:
    """Connects clients to ports of this machine, by `CONNECT` or by an absolute address.

    Args:
        ports: by the host names that it knows.
        refusal: the status of its answers; 0: it serves.

    Attributes:
        heads: the requests that it received.
    """

    def __init__(self, ports: Mapping[str, int], refusal: int = 0) -> None:
        self.heads: list[str] = []
        self._ports = ports
        self._refusal = refusal
        self._serving: set[asyncio.Task[object]] = set()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await self._serve(reader, writer)
        writer.close()
        self._serving.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head.decode())
        method, target, _ = self.heads[-1].split(" ", 2)
        host = target.removeprefix("http://").partition("/")[0].partition(":")[0]
        if self._refusal:
            writer.write(REFUSED % self._refusal)
            return
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._ports[host])
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        else:
            to_writer.write(head)
        await asyncio.gather(_copy(reader, to_writer), _copy(to_reader, writer))

    def stop(self) -> None:
        for task in self._serving:
            task.cancel()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(2**16):
        writer.write(data)
        await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def running(proxy: Proxy) -> AsyncIterator[str]:
    """Run a proxy; yield its host and port."""
    server = await asyncio.start_server(proxy, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        proxy.stop()
