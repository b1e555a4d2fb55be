"""A streamed answer as the relay knows it, and the kind that is made of chunks.

There are two kinds: `pass_through.PassThrough` carries the bytes of an upstream that speaks as the
caller does; `Chunked` carries chunks, of a plugin or of an upstream that speaks another dialect
than the caller. Both are opened up to their first content, then poured out to the caller; what
goes wrong after that is a BrokenStream.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any, Protocol

import aiohttp

from nexus_gateway.answer import ODD_SHAPES, Chunk, counted, finished, fold, has_content
from nexus_gateway.classify import normalise_error
from nexus_gateway.dialects.dialect import Speaker
from nexus_gateway.idle_watch import IdleWatch
from nexus_gateway.provider import CannotServe
from nexus_gateway.receiving import HttpAnswer, Pulse
from nexus_gateway.stream_errors import (
    BrokenStream,
    ErrorEvent,
    IdleStream,
    PluginBroke,
    TruncatedStream,
)

logger = logging.getLogger("nexus_gateway")


class Pipe(Protocol):
    """A way to write to the caller without waiting."""

    def write(self, data: bytes) -> bool:
        """Send whole events; False when the caller does not take them so fast: then `drain`."""

    async def drain(self) -> None:
        """Wait until the caller takes more."""


class Outlet(Protocol):
    """Where a stream is poured."""

    async def write(self, data: bytes) -> None:
        """Send whole events."""

    async def end(self, data: bytes = b"") -> None:
        """End the stream, with its last events."""

    def pipe(self) -> Pipe | None:
        """Return a way to write without waiting; None where there is none."""


class AnswerStream(Protocol):
    """A streamed answer whose first content is in hand."""

    async def pour(self, outlet: Outlet) -> None:
        """Send whole events, the held ones first and `[DONE]` last, and end.

        Raises:
            BrokenStream: it breaks; what came before that has been sent.
        """

    def used(self) -> Mapping[str, Any]:
        """Return what was used so far, counted or estimated, in OpenAI's shape."""

    async def close(self) -> None:
        """Let go of the upstream; cuts it off where it has not ended."""


class Chunked:
    """Chunks, told in the caller's dialect.

    Args:
        chunks: an async generator.
        maker: who makes them, for the log: a plugin and its distribution.
        model: what `model` shall say, or None to leave it.
        speaker: puts them into the caller's words.
        idle_s: the longest silence between two chunks.
        response: the HTTP answer behind it, None in process.
        pulse: tells when bytes of it have come.
    """

    def __init__(
        self,
        chunks: AsyncIterator[Chunk],
        maker: str,
        model: str | None,
        speaker: Speaker,
        idle_s: float,
        response: HttpAnswer | None = None,
        pulse: Pulse | None = None,
    ) -> None:
        self._pulse = pulse or Pulse()
        self._chunks = chunks
        self._maker = maker
        self._model = model
        self._speaker = speaker
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
        except (BrokenStream, asyncio.CancelledError):
            raise
        except CannotServe as error:
            if not self._events:
                raise
            raise PluginBroke(error.message) from error
        except Exception as error:
            if isinstance(error, aiohttp.ClientError | OSError) and self._response is not None:
                raise TruncatedStream("The upstream's connection broke.") from error
            logger.exception("the plugin %s failed in its stream", self._maker)
            raise PluginBroke("The provider's plugin failed.") from error
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
        following = self._in_process if self._response is None else self._watched
        async with aclosing(following()) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _in_process(self) -> AsyncGenerator[Chunk, None]:
        while True:
            try:
                async with asyncio.timeout(self._idle_s):
                    chunk = await self._next()
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise IdleStream from None
            yield chunk

    async def _watched(self) -> AsyncGenerator[Chunk, None]:
        """Give the following chunks; comments and pings, which make none, are signs of life too."""
        assert self._response is not None
        with IdleWatch(self._idle_s, self._response.close) as watch:
            self._pulse.on_beat = watch.wait
            while True:
                watch.wait()
                try:
                    chunk = await self._next()
                except StopAsyncIteration:
                    return
                watch.waiting_since = None
                yield chunk

    async def pour(self, outlet: Outlet) -> None:
        """Send whole events as the chunks come."""
        async with aclosing(self._rest()) as rest:
            async for chunk in rest:
                if said := self._spoken(partial(self._speaker.say, chunk)):
                    await outlet.write(said)
        await outlet.end(self._spoken(self._speaker.end))

    def _spoken(self, speak: Callable[[], bytes]) -> bytes:
        try:
            return speak()
        except ODD_SHAPES as error:
            logger.exception("the chunks of %s make no answer", self._maker)
            raise BrokenStream("The upstream sent something that is not an answer.") from error

    async def whole(self) -> Chunk:
        """Read to the end and fold the chunks into one object.

        Raises:
            BrokenStream: it broke, or the chunks make no answer.
        """
        chunks = [chunk async for chunk in self._rest()]
        try:
            return fold(chunks)
        except ODD_SHAPES as error:
            logger.exception("the chunks of %s make no answer", self._maker)
            raise BrokenStream("The provider made chunks that are no answer.") from error

    def used(self) -> Mapping[str, Any]:
        """Return what was used."""
        return counted(self._usage, self._events)

    async def close(self) -> None:
        """End the plugin's generator and let go of its upstream."""
        if hasattr(self._chunks, "aclose"):
            try:
                await self._chunks.aclose()
            except Exception:
                logger.exception("the plugin %s failed while its stream was closed", self._maker)
        if self._response is not None:
            await self._response.finish(whole=self._ended and self._finished)
