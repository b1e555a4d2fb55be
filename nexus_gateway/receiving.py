"""What comes from an upstream, read from its HTTP response: a body, events, chunks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import aiohttp

from nexus_gateway import json_codec, sse
from nexus_gateway.answer import Chunk, finished, has_content
from nexus_gateway.errors import BrokenStream

LAST_BYTES_S = 0.25


async def read_up_to(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """Read a body up to a limit in bytes.

    Raises:
        aiohttp.ClientError, OSError, ValueError: the connection broke, or HTTP's rules.
    """
    parts: list[bytes] = []
    size = 0
    while size < limit and (part := await response.content.readany()):
        parts.append(part)
        size += len(part)
    return b"".join(parts)[:limit]


async def release(response: aiohttp.ClientResponse, *, whole: bool) -> None:
    """Let go of a response.

    A whole answer's last bytes may still be on their way after `[DONE]`; waiting a moment for
    them keeps the connection for the next request.
    """
    if whole and not response.content.at_eof():
        try:
            async with asyncio.timeout(LAST_BYTES_S):
                await response.content.readany()
        except (aiohttp.ClientError, OSError, TimeoutError):
            pass
    if whole and response.content.at_eof():
        response.release()
    else:
        response.close()


class Pulse:
    """Tells whoever cares that an upstream is alive, also where it says nothing of substance.

    Attributes:
        on_beat: called whenever bytes have come.
    """

    def __init__(self) -> None:
        self.on_beat: Callable[[], None] | None = None


async def events(response: aiohttp.ClientResponse, pulse: Pulse) -> AsyncIterator[sse.Event]:
    """Read a response's events, for a Translator; comments are left out."""
    framer = sse.Framer()
    async for data in response.content.iter_any():
        if pulse.on_beat is not None:
            pulse.on_beat()
        for event in sse.split(framer.feed(data)):
            read = sse.read(event)
            if read.data or read.name:
                yield read
    rest = framer.rest().strip(b"\n")
    if rest:
        yield sse.read(rest)


async def chat_chunks(response: aiohttp.ClientResponse, pulse: Pulse) -> AsyncIterator[Chunk]:
    """Read the chunks of an upstream that speaks OpenAI, for a caller who does not.

    Raises:
        BrokenStream: an event that is no JSON.
    """
    finish_seen = said = False
    async for event in events(response, pulse):
        if event.data.strip() == "[DONE]":
            if said and not finish_seen:
                # As `[DONE]` says that the answer is whole, a missing finish is only untold.
                yield {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
            return
        if not event.data:
            continue
        try:
            chunk = json_codec.loads(event.data)
        except json_codec.JSONError:
            raise BrokenStream("The upstream sent something that is not an answer.") from None
        if isinstance(chunk, dict):
            finish_seen = finish_seen or finished(chunk)
            said = said or has_content(chunk)
        yield chunk
