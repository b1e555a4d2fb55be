"""What comes from an upstream, read from its HTTP response: a body, events, chunks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

import aiohttp

LAST_BYTES_S = 0.25


class HttpResponse(Protocol):
    """The answer to an HTTP request whose head is there, however it was come by."""

    @property
    def status(self) -> int:
        """Its HTTP status."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Its headers, case-insensitive."""

    @property
    def content_type(self) -> str:
        """Its media type, in small letters and without parameters."""

    async def read(self) -> bytes:
        """Return what came of the body, b"" at its end.

        Raises:
            aiohttp.ClientError, OSError, ValueError: the connection broke, or HTTP's rules.
        """

    def push(self, receive: Callable[[bytes], None], fail: Callable[[Exception], None]) -> bool:
        """Hand over each piece as it comes from now on, b"" at the end, what breaks to `fail`.

        Returns:
            False where this can't be had; then `parse_event` goes on as before.
        """

    def pause(self) -> None:
        """Push nothing for now, and let the upstream wait."""

    def resume(self) -> None:
        """Push on."""

    def close(self) -> None:
        """Cut the body off where it has not ended."""

    async def finish(self, *, whole: bool) -> None:
        """Let go of it; the connection is used again where the body has ended.

        Args:
            whole: nothing that matters is missing. The last bytes may still be on their way;
                waiting a moment for them keeps the connection.
        """


def content_type_of(headers: Mapping[str, str]) -> str:
    """Return the media type that headers tell."""
    said = headers.get("Content-Type", "application/octet-stream")
    return said.partition(";")[0].strip().lower()


class AiohttpResponse:
    """An answer that aiohttp's parser reads (an `HttpResponse`).

    Args:
        status: of HTTP.
        headers: case-insensitive.
        content: the body.
        release: gives the connection back.
        close: closes it.
    """

    def __init__(
        self,
        status: int,
        headers: Mapping[str, str],
        content: aiohttp.StreamReader,
        release: Callable[[], object],
        close: Callable[[], object],
    ) -> None:
        self.status = status
        self.headers = headers
        self.content_type = content_type_of(headers)
        self.read = content.readany
        self._content = content
        self._release = release
        self._close = close

    def push(self, receive: Callable[[bytes], None], fail: Callable[[Exception], None]) -> bool:
        """Say that it must be read."""
        return False

    def pause(self) -> None:
        """Do nothing: who does not read lets the upstream wait."""

    def resume(self) -> None:
        """Do nothing, see `pause`."""

    def close(self) -> None:
        """Cut it off."""
        self._close()

    async def finish(self, *, whole: bool) -> None:
        """Let go of it."""
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


async def read_up_to(answer: HttpResponse, limit: int) -> bytes:
    """Read a body up to a limit in bytes.

    Raises:
        aiohttp.ClientError, OSError, ValueError: the connection broke, or HTTP's rules.
    """
    parts: list[bytes] = []
    size = 0
    while size < limit and (part := await answer.read()):
        parts.append(part)
        size += len(part)
    return b"".join(parts)[:limit]
