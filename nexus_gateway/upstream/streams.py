"""A streamed answer as the relay knows it, and the kind that is made of chunks.

There are two kinds: `pass_through.PassThrough` carries the bytes of an upstream that speaks as the
caller does; `TranslatedStream` carries chunks, of a plugin or of an upstream that speaks another dialect
than the caller. Both are opened up to their first content, then poured out to the caller; what
goes wrong after that is a BrokenStream.

The stream of an upstream that speaks as the caller does: its bytes are passed on.

Up to the first content the bytes are read. After it, where both sides can, they are *pushed*: what
comes from the upstream goes through the passage to the caller's transport in the same turn of the
loop, and the request's task sleeps until the end. It is woken in between only when the caller does
not take what comes: then the upstream waits, and nobody else.

Silence noticed: an upstream that says nothing for too long is cut off.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self

import aiohttp

from nexus_gateway.dialects.base import StreamEncoder
from nexus_gateway.errors import BrokenStream, ErrorEvent, IdleStream, PluginBroke, TruncatedStream
from nexus_gateway.provider import CannotServe
from nexus_gateway.upstream.response import HttpResponse
from nexus_gateway.wire import json_codec, sse
from nexus_gateway.wire.chunks import MALFORMED, Chunk, finished, fold, has_content
from nexus_gateway.wire.error_objects import normalise_error
from nexus_gateway.wire.passthrough import Passthrough
from nexus_gateway.wire.usage import counted

logger = logging.getLogger("nexus_gateway")


class Pulse:
    """Tells whoever cares that an upstream is alive, also where it says nothing of substance.

    Attributes:
        on_beat: called whenever bytes have come.
    """

    def __init__(self) -> None:
        self.on_beat: Callable[[], None] | None = None


async def events(answer: HttpResponse, pulse: Pulse) -> AsyncIterator[sse.Event]:
    """Read an answer's events, for a Translator; comments are left out."""
    framer = sse.Framer()
    while data := await answer.read():
        if pulse.on_beat is not None:
            pulse.on_beat()
        for event in sse.split(framer.feed(data)):
            read = sse.parse_event(event)
            if read.data or read.name:
                yield read
    rest = framer.rest().strip(b"\n")
    if rest:
        yield sse.parse_event(rest)


async def chat_chunks(answer: HttpResponse, pulse: Pulse) -> AsyncIterator[Chunk]:
    """Read the chunks of an upstream that speaks OpenAI, for a caller who does not.

    Raises:
        BrokenStream: an event that is no JSON.
    """
    finish_seen = said = False
    async for event in events(answer, pulse):
        data = event.data.strip()
        if data == "[DONE]":
            if said and not finish_seen:
                # As `[DONE]` says that the answer is whole, a missing finish is only untold.
                yield {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
            return
        if not data:
            continue
        try:
            chunk = json_codec.loads(data)
        except json_codec.JSONError:
            raise BrokenStream("The upstream sent something that is not an answer.") from None
        if isinstance(chunk, dict):
            finish_seen = finish_seen or finished(chunk)
            said = said or has_content(chunk)
        yield chunk


class IdleTimeout:
    """Notice silence without a timer for each chunk: one timer that looks back when it fires.

    It looks for as long as its `with` block runs; a stream that breaks in there because of the
    silence leaves it as IdleStream.

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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        if self.expired and isinstance(error, BrokenStream):
            raise IdleStream from error

    def _look(self) -> None:
        now = self._loop.time()
        since = self.waiting_since if self.waiting_since is not None else now
        left = since + self._limit_s - now
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self.expired = True
            self._expire()


class RawWriter(Protocol):
    """A way to write to the caller without waiting."""

    def write(self, data: bytes) -> bool:
        """Send whole events; False when the caller does not take them so fast: then `drain`."""

    async def drain(self) -> None:
        """Wait until the caller takes more."""


class ResponseWriter(Protocol):
    """Where a stream is poured."""

    async def write(self, data: bytes) -> None:
        """Send whole events."""

    async def end(self, data: bytes = b"") -> None:
        """End the stream, with its last events."""

    def pipe(self) -> RawWriter | None:
        """Return a way to write without waiting; None where there is none."""


class AnswerStream(Protocol):
    """A streamed answer whose first content is in hand."""

    async def write_to(self, outlet: ResponseWriter) -> None:
        """Send whole events, the held ones first and `[DONE]` last, and end.

        Raises:
            BrokenStream: it breaks; what came before that has been sent.
        """

    def used(self) -> Mapping[str, Any]:
        """Return what was used so far, counted or estimated, in OpenAI's shape."""

    async def close(self) -> None:
        """Let go of the upstream; cuts it off where it has not ended."""


class TranslatedStream:
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
        speaker: StreamEncoder,
        idle_s: float,
        response: HttpResponse | None = None,
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
        with IdleTimeout(self._idle_s, self._response.close) as watch:
            self._pulse.on_beat = watch.wait
            while True:
                watch.wait()
                try:
                    chunk = await self._next()
                except StopAsyncIteration:
                    return
                watch.waiting_since = None
                yield chunk

    async def write_to(self, outlet: ResponseWriter) -> None:
        """Send whole events as the chunks come."""
        async with aclosing(self._rest()) as rest:
            async for chunk in rest:
                if said := self._encoded(partial(self._speaker.encode, chunk)):
                    await outlet.write(said)
        await outlet.end(self._encoded(self._speaker.finish))

    def _encoded(self, speak: Callable[[], bytes]) -> bytes:
        try:
            return speak()
        except MALFORMED as error:
            logger.exception("the chunks of %s make no answer", self._maker)
            raise BrokenStream("The upstream sent something that is not an answer.") from error

    async def fold(self) -> Chunk:
        """Read to the end and fold the chunks into one object.

        Raises:
            BrokenStream: it broke, or the chunks make no answer.
        """
        chunks = [chunk async for chunk in self._rest()]
        try:
            return fold(chunks)
        except MALFORMED as error:
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


_CUT = "The upstream's connection broke."


class PassthroughStream:
    """A stream that is passed on (a `streams.AnswerStream`).

    Args:
        answer: of the upstream.
        passage: what is done to its bytes.
        idle_s: the longest silence in its midst.
    """

    def __init__(self, answer: HttpResponse, passage: Passthrough, idle_s: float) -> None:
        self._answer = answer
        self._passage = passage
        self._idle_s = idle_s
        self._first = b""

    async def open(self) -> None:
        """Read up to the first content.

        Raises:
            BrokenStream: the upstream failed before it.
        """
        while not self._passage.started and not self._passage.done:
            self._first += await self._read()
            if self._passage.broken is not None:  # nothing has gone out: somebody else may do it
                raise self._passage.broken

    async def _read(self) -> bytes:
        try:
            data = await self._answer.read()
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise TruncatedStream(_CUT) from error
        return _passed(self._passage, data)

    async def write_to(self, outlet: ResponseWriter) -> None:
        """Send whole events as they come, and end."""
        passage, last = self._passage, self._first
        if not passage.done:
            await outlet.write(self._first)
            with IdleTimeout(self._idle_s, self._answer.close) as watch:
                pipe = outlet.pipe()
                if pipe is None:
                    last = await self._by_hand(outlet, watch)
                else:
                    last = await self._by_push(outlet, pipe, watch)
        await outlet.end(last)

    async def _by_hand(self, outlet: ResponseWriter, watch: IdleTimeout) -> bytes:
        """Read and write block by block; return the last one."""
        while True:
            watch.wait()
            block = await self._read()
            watch.waiting_since = None
            if self._passage.done:
                return block
            if block:
                await outlet.write(block)
            if self._passage.broken is not None:
                raise self._passage.broken

    async def _by_push(self, outlet: ResponseWriter, pipe: RawWriter, watch: IdleTimeout) -> bytes:
        """Let blocks go from transport to transport; return the last one."""
        flow = _Pump(self._passage, pipe, self._answer, watch)
        watch.wait()
        if not self._answer.push(flow.receive, flow.fail):
            return await self._by_hand(outlet, watch)
        return await flow.run()

    def used(self) -> Mapping[str, Any]:
        """Return what was used."""
        return self._passage.used()

    async def close(self) -> None:
        """Give the connection back if its answer ended, else close it."""
        await self._answer.finish(whole=self._passage.done)


def _passed(passage: Passthrough, data: bytes) -> bytes:
    try:
        return passage.feed(data) if data else passage.end()
    except MALFORMED as error:
        raise BrokenStream("The upstream sent something that is not an answer.") from error


class _Pump:
    """The midst of a stream: from its first content to its last, without a task.

    Args:
        passage: what is done to the bytes.
        pipe: to the caller.
        answer: waits while the caller takes nothing.
        watch: knows when the upstream was heard last.
    """

    def __init__(
        self, passage: Passthrough, pipe: RawWriter, answer: HttpResponse, watch: IdleTimeout
    ) -> None:
        self._passage = passage
        self._write = pipe.write
        self._pipe = pipe
        self._answer = answer
        self._watch = watch
        self._time = asyncio.get_running_loop().time
        self._full = False
        self._over = False
        self._last = b""
        self._error: Exception | None = None
        self._waker: asyncio.Future[None] | None = None

    def receive(self, data: bytes) -> None:
        """Pass on what came; b"" is the end of the body."""
        if self._over:
            return
        self._watch.waiting_since = self._time()
        passage = self._passage
        try:
            block = _passed(passage, data)
        except Exception as error:  # also a fault of ours: who waits for the stream has to know
            self._end(error)
            return
        if passage.done:
            self._last = block
            self._end(None)
            return
        if block and not self._write(block):
            self._full = True
            self._answer.pause()
            self._wake()
        if passage.broken is not None:
            self._end(passage.broken)

    def fail(self, error: Exception) -> None:
        """Say that the connection broke."""
        broken = TruncatedStream(_CUT)
        broken.__cause__ = error
        self._end(broken)

    def _end(self, error: Exception | None) -> None:
        if not self._over:
            self._over, self._error = True, error
            self._wake()

    def _wake(self) -> None:
        if self._waker is not None and not self._waker.done():
            self._waker.set_result(None)

    async def run(self) -> bytes:
        """Wait for the end, and for the caller in between; return the last block.

        Raises:
            BrokenStream: it broke.
        """
        loop = asyncio.get_running_loop()
        while True:
            await self._relieve()
            if self._over:
                break
            self._waker = loop.create_future()
            await self._waker
        if self._error is not None:
            raise self._error
        return self._last

    async def _relieve(self) -> None:
        """Wait for a caller who is slow; meanwhile the upstream's silence is ours."""
        while self._full:
            self._full = False
            self._watch.waiting_since = None
            await self._pipe.drain()
            self._watch.wait()
            self._answer.resume()
