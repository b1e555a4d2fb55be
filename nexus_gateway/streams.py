"""The two kinds of streamed answer, with one face to the relay.

`PassThrough` carries an OpenAI-compatible upstream's bytes; `Chunked` carries the chunks of a
Translator or of an InProcess provider. Both are opened up to their first content, then read
block by block; what goes wrong after that is a BrokenStream.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, Protocol

import aiohttp

from nexus_gateway import json_codec, sse
from nexus_gateway.answer import Chunk, finished, fold, has_content, is_usage_only
from nexus_gateway.classify import normalise_error
from nexus_gateway.errors import BrokenStream, ErrorEvent, IdleStream, TruncatedStream
from nexus_gateway.splice import Splice

logger = logging.getLogger("nexus_gateway")
LAST_BYTES_S = 0.25


class AnswerStream(Protocol):
    """A streamed answer whose first content is in hand."""

    def blocks(self) -> AsyncGenerator[bytes, None]:
        """Give whole events, the held ones first and `[DONE]` last; BrokenStream if it breaks."""

    def tokens(self) -> int:
        """Return how many tokens the answer had so far, counted or estimated."""

    async def close(self) -> None:
        """Let go of the upstream; cuts it off where it has not ended."""


class IdleWatch:
    """Notice silence without a timer for each chunk: one timer that looks back when it fires.

    Args:
        limit_s: how long a wait may last.
        expire: called once when a wait has lasted so long.
    """

    def __init__(self, limit_s: float, expire: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._limit_s = limit_s
        self._expire = expire
        self.waiting_since: float | None = None
        self.expired = False
        self._timer = self._loop.call_later(limit_s, self._look)

    def wait(self) -> None:
        """A wait for the upstream begins; set `waiting_since` to None when it ends."""
        self.waiting_since = self._loop.time()

    def stop(self) -> None:
        """Look no more."""
        self._timer.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        since = self.waiting_since if self.waiting_since is not None else now
        left = since + self._limit_s - now
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self.expired = True
            self._expire()


class PassThrough:
    """An OpenAI-compatible upstream's stream, its bytes passed on."""

    def __init__(self, response: aiohttp.ClientResponse, splice: Splice, idle_s: float) -> None:
        self._response = response
        self._splice = splice
        self._idle_s = idle_s
        self._first = b""

    async def open(self) -> None:
        """Read up to the first content.

        Raises:
            BrokenStream: the upstream failed before it.
        """
        while not self._splice.started and not self._splice.done:
            self._first += await self._read()

    async def _read(self) -> bytes:
        try:
            data = await self._response.content.readany()
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise TruncatedStream("The upstream's connection broke.") from error
        return self._splice.feed(data) if data else self._splice.end()

    async def blocks(self) -> AsyncGenerator[bytes, None]:
        """Give whole events as they come."""
        yield self._first
        watch = IdleWatch(self._idle_s, self._response.close)
        try:
            while not self._splice.done:
                watch.wait()
                block = await self._read()
                watch.waiting_since = None
                if block:
                    yield block
                if self._splice.broken is not None:
                    raise self._splice.broken
        except BrokenStream as broken:
            if watch.expired:
                raise IdleStream from broken
            raise
        finally:
            watch.stop()

    def tokens(self) -> int:
        """Return the completion's tokens."""
        return self._splice.tokens()

    async def close(self) -> None:
        """Give the connection back if its answer ended, else close it."""
        await release(self._response, whole=self._splice.done)


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


class Chunked:
    """The chunks of a plugin, framed on their way to the caller.

    Args:
        chunks: the plugin's async generator.
        model: what `model` shall say, or None to leave it.
        usage_wanted: whether the caller asked for the usage chunk.
        idle_s: the longest silence between two chunks.
        response: the HTTP answer behind it, None in process.
    """

    def __init__(
        self,
        chunks: AsyncIterator[Chunk],
        model: str | None,
        usage_wanted: bool,
        idle_s: float,
        response: aiohttp.ClientResponse | None = None,
    ) -> None:
        self._chunks = chunks
        self._model = model
        self._usage_wanted = usage_wanted
        self._idle_s = idle_s
        self._response = response
        self._held: list[Chunk] = []
        self._usage: dict[str, Any] | None = None
        self._events = 0
        self._finished = False
        self._ended = False

    async def open(self) -> None:
        """Read up to the first content; BrokenStream if the plugin or its backend fails."""
        while not self._events:
            self._held.append(await self._next())

    async def _next(self) -> Chunk:
        """Give the next chunk, checked and noted.

        Raises:
            StopAsyncIteration: the answer has ended, and was whole.
            BrokenStream: it was not, or the plugin failed.
        """
        try:
            chunk = await anext(self._chunks)
        except StopAsyncIteration:
            self._ended = True
            if self._finished:
                raise
            raise TruncatedStream("The upstream cut the answer off.") from None
        except (aiohttp.ClientError, OSError) as error:
            raise TruncatedStream("The upstream's connection broke.") from error
        except (BrokenStream, asyncio.CancelledError):
            raise
        except Exception as error:
            logger.exception("a provider plugin failed in its stream")
            raise BrokenStream("The provider's plugin failed.") from error
        return self._note(chunk)

    def _note(self, chunk: Chunk) -> Chunk:
        if not isinstance(chunk, dict):
            raise BrokenStream("The provider's plugin made something that is not a chunk.")
        if chunk.get("error"):
            raise ErrorEvent(normalise_error(chunk["error"]))
        self._events += has_content(chunk)
        self._finished = self._finished or finished(chunk)
        if isinstance(chunk.get("usage"), dict):
            self._usage = chunk["usage"]
        return chunk if self._model is None else {**chunk, "model": self._model}

    async def _rest(self) -> AsyncGenerator[Chunk, None]:
        for chunk in self._held:
            yield chunk
        while True:
            try:
                async with asyncio.timeout(self._idle_s):
                    chunk = await self._next()
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise IdleStream from None
            yield chunk

    async def blocks(self) -> AsyncGenerator[bytes, None]:
        """Give whole events as the chunks come."""
        async for chunk in self._rest():
            if self._usage_wanted or not is_usage_only(chunk):
                yield sse.frame(json_codec.dumps(chunk))
        yield sse.DONE

    async def whole(self) -> bytes:
        """Read to the end and fold the chunks into one object, as JSON."""
        return json_codec.dumps(fold([chunk async for chunk in self._rest()]))

    def tokens(self) -> int:
        """Return the completion's tokens."""
        counted = (self._usage or {}).get("completion_tokens")
        return counted if isinstance(counted, int) else self._events

    async def close(self) -> None:
        """End the plugin's generator and let go of its upstream."""
        if hasattr(self._chunks, "aclose"):
            try:
                await self._chunks.aclose()
            except Exception:
                logger.exception("a provider plugin failed while its stream was closed")
        if self._response is not None:
            await release(self._response, whole=self._ended and self._finished)


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[sse.Event]:
    """Read a response's events, for a Translator; comments are left out."""
    framer = sse.Framer()
    async for data in response.content.iter_any():
        for event in sse.split(framer.feed(data)):
            read = sse.read(event)
            if read.data or read.name:
                yield read
    rest = framer.rest().strip(b"\n")
    if rest:
        yield sse.read(rest)
