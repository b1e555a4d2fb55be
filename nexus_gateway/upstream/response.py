"""A response whose head has been received: the interface of both paths, and aiohttp's path."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import aiohttp

from nexus_gateway.upstream.connector import Idle

LAST_BYTES_S = 0.25
SWITCHING = 101
TOO_MANY = "more came than one answer"
UNKNOWN_TYPE = "application/octet-stream"
Receive = Callable[[bytes], None]
Fail = Callable[[Exception], None]


class HttpResponse(Protocol):
    """The response to an HTTP request, once its head has been received."""

    status: int
    headers: Mapping[str, str]  # case-insensitive
    content_type: str  # in lower case and without parameters

    async def read(self) -> bytes:
        """Return the next part of the body, b"" at its end.

        ClientError, OSError or ValueError if the connection breaks or the framing is bad.
        """

    def push(self, receive: Receive, fail: Fail) -> bool:
        """Call `receive` with each part as it arrives, b"" at the end; `fail` if it breaks.

        Returns False if this is not supported: then continue with `read`.
        """

    def pause(self) -> None:
        """Stop pushing, and apply back-pressure to the upstream."""

    def resume(self) -> None: ...

    def close(self) -> None:
        """Cancel the body unless it has ended."""

    async def finish(self, *, whole: bool) -> None:
        """Release the response; the connection is reused if the body has ended.

        If all that matters has been received (`whole`), the last bytes may still be on their way:
        waiting LAST_BYTES_S for them saves the connection.
        """


@dataclass(slots=True)
class AiohttpResponse:
    """A response that aiohttp's parser reads; `_release` returns the connection to the pool.

    ClientPayloadError if the upstream wants to leave HTTP: no request asks for that.
    """

    status: int
    headers: Mapping[str, str]
    _content: aiohttp.StreamReader
    _release: Callable[[], object]
    _close: Callable[[], object]
    _idle: Idle | None  # None if the connection was new
    content_type: str = field(init=False)

    def __post_init__(self) -> None:
        if self.status == SWITCHING:
            self._close()
            raise aiohttp.ClientPayloadError("the upstream switches protocols")
        content_type = self.headers.get("Content-Type", UNKNOWN_TYPE)
        self.content_type = content_type.partition(";")[0].strip().lower()

    async def read(self) -> bytes:
        part = await self._content.readany()
        if self._idle is not None and self._idle.surplus:
            # Either may be the answer to this request.
            raise aiohttp.ClientPayloadError(TOO_MANY)
        return part

    def push(self, receive: Receive, fail: Fail) -> bool:
        return False

    def pause(self) -> None:
        """Not needed: not reading applies back-pressure."""

    def resume(self) -> None:
        """Not needed, see `pause`."""

    def close(self) -> None:
        self._close()

    async def finish(self, *, whole: bool) -> None:
        if whole and not self._content.at_eof():
            try:
                async with asyncio.timeout(LAST_BYTES_S):
                    await self.read()
            except (aiohttp.ClientError, OSError, TimeoutError):
                pass
        if whole and self._content.at_eof():
            self._release()
        else:
            self.close()


async def read_up_to(response: HttpResponse, limit: int) -> bytes:
    """Read a body up to a limit in bytes; raises as `HttpResponse.read`."""
    parts: list[bytes] = []
    size = 0
    while size < limit and (part := await response.read()):
        parts.append(part)
        size += len(part)
    return b"".join(parts)[:limit]
