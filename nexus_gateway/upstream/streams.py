"""A streamed answer, from its first content to its end.

`PassthroughStream` forwards the bytes of an upstream that speaks the caller's dialect;
`TranslatedStream` encodes the chunks of a plugin, or of an upstream that speaks another dialect.
Both are opened up to their first content and then written to the caller. A later failure is a
BrokenStream.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, Self

import aiohttp

from nexus_gateway.dialects.base import StreamEncoder
from nexus_gateway.errors import (
    BrokenStream,
    EndlessStream,
    ErrorEvent,
    IdleStream,
    PluginBroke,
    TruncatedStream,
)
from nexus_gateway.provider import CannotServe
from nexus_gateway.upstream.response import HttpResponse
from nexus_gateway.wire import json_codec, sse
from nexus_gateway.wire.chunks import MALFORMED, Chunk, Progress, fold
from nexus_gateway.wire.error_objects import read_named
from nexus_gateway.wire.passthrough import Passthrough
from nexus_gateway.wire.usage import counted

logger = logging.getLogger("nexus_gateway")

INVALID = "The upstream sent something that is not an answer."
CONNECTION_BROKE = "The upstream's connection broke."


class ResponseWriter(Protocol):
    """The response to the caller."""

    async def write(self, data: bytes) -> None:
        """Send whole events."""

    async def end(self, data: bytes = b"") -> None:
        """End the stream, with its last events."""

    def pipe(self) -> RawWriter | None:
        """Return a way to write without waiting, if there is one."""


class RawWriter(Protocol):
    """Writes to the caller without waiting."""

    def write(self, data: bytes) -> bool:
        """Send whole events; False if the caller's buffer is full: then `drain`."""

    async def drain(self) -> None:
        """Wait until the caller takes more."""


@dataclass(eq=False)
class PassthroughStream:
    """The bytes of an upstream that speaks the caller's dialect.

    Up to the first content they are read. After it, if both sides support that, they are *pushed*:
    bytes go through the filter to the caller's transport in the turn of the loop in which they
    arrive, while the request's task sleeps. It wakes up only at the end, or if the caller is slow:
    then the upstream is paused.
    """

    _response: HttpResponse
    _passthrough: Passthrough
    _limits: StreamLimits
    _first: bytes = b""
    _last: bytes = b""
    _caller_is_slow: bool = False
    _ended: bool = False
    _error: Exception | None = None
    _waker: asyncio.Future[None] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether the first thing that came was the answer's end."""
        return self._passthrough.is_empty

    @property
    def sent(self) -> Passthrough:
        """What makes the events for the caller."""
        return self._passthrough

    async def open(self, on_role: Callable[[], None]) -> None:
        """Read up to the first content; BrokenStream if there is none.

        `on_role` is called once, if an event has come that begins a choice without any content.
        """
        passthrough, has_role = self._passthrough, False
        while not passthrough.started and not passthrough.done:
            self._first += await self._read()
            if passthrough.broken is not None:
                raise passthrough.broken  # nothing was sent: another instance may serve it
            if not (passthrough.started or has_role) and passthrough.has_role:
                has_role = True
                on_role()

    async def _read(self) -> bytes:
        try:
            data = await self._response.read()
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise TruncatedStream(CONNECTION_BROKE) from error
        try:
            return self._passthrough.feed(data) if data else self._passthrough.end()
        except MALFORMED as error:
            raise BrokenStream(INVALID) from error

    async def write_to(self, writer: ResponseWriter) -> None:
        """Send whole events, the buffered ones first, and end; BrokenStream if it breaks."""
        last = self._first
        if not self._passthrough.done:
            await writer.write(self._first)
            with StreamTimeout(self._limits) as self._idle:
                pipe = writer.pipe()
                if pipe is None:
                    last = await self._copy(writer)
                else:
                    last = await self._push(writer, pipe)
        await writer.end(last)

    async def _copy(self, writer: ResponseWriter) -> bytes:
        """Read and write block by block; return the last one."""
        while True:
            self._idle.wait()
            block = await self._read()
            self._idle.waiting_since = None
            if self._passthrough.done:
                return block
            if block:
                await writer.write(block)
            if self._passthrough.broken is not None:
                raise self._passthrough.broken

    async def _push(self, writer: ResponseWriter, pipe: RawWriter) -> bytes:
        """Forward blocks from transport to transport; return the last one."""
        self._write = pipe.write
        self._loop = asyncio.get_running_loop()
        self._time = self._loop.time
        self._idle.wait()
        if not self._response.push(self._receive, self._fail):
            return await self._copy(writer)
        while True:
            while self._caller_is_slow:  # the upstream is paused, which is not its silence
                self._caller_is_slow = False
                self._idle.waiting_since = None
                await pipe.drain()
                self._idle.wait()
                self._response.resume()
            if self._ended:
                break
            self._waker = self._loop.create_future()
            await self._waker
        if self._error is not None:
            raise self._error
        return self._last

    def _receive(self, data: bytes) -> None:
        """Forward what arrived; b"" is the end of the body."""
        if self._ended:
            return
        self._idle.waiting_since = self._time()
        try:
            block = self._passthrough.feed(data) if data else self._passthrough.end()
        except MALFORMED as error:
            self._end(BrokenStream(INVALID), error)
            return
        except Exception as error:  # even if it is our bug: the task that waits must not hang
            self._end(error)
            return
        if self._passthrough.done:
            self._last = block
            self._end()
            return
        if block and not self._write(block):
            self._caller_is_slow = True
            self._response.pause()
            self._wake()
        if self._passthrough.broken is not None:
            self._end(self._passthrough.broken)

    def _fail(self, error: Exception) -> None:
        self._end(TruncatedStream(CONNECTION_BROKE), error)

    def _end(self, error: Exception | None = None, cause: Exception | None = None) -> None:
        if not self._ended:
            self._ended, self._error = True, error
            if error is not None and cause is not None:
                error.__cause__ = cause
            self._wake()

    def _wake(self) -> None:
        if self._waker is not None and not self._waker.done():
            self._waker.set_result(None)

    def used(self) -> Mapping[str, Any]:
        """Return the usage so far, counted or estimated, in OpenAI's shape."""
        return self._passthrough.used()

    async def close(self) -> None:
        """Release the upstream; cancels the answer if it has not ended."""
        await self._response.finish(whole=self._passthrough.done)


class Heartbeat:
    """Calls `on_beat` whenever bytes arrive, even if they are only comments."""

    on_beat: Callable[[], None] | None = None


async def events(response: HttpResponse, heartbeat: Heartbeat) -> AsyncIterator[sse.Event]:
    """Read the events of a response, without comments."""
    framer = sse.Framer()
    while data := await response.read():
        if heartbeat.on_beat is not None:
            heartbeat.on_beat()
        for block in sse.split(framer.feed(data)):
            event = sse.parse_event(block)
            if event.data or event.name:
                yield event
    rest = framer.rest().strip(b"\n")
    if rest:
        yield sse.parse_event(rest)


async def chat_chunks(response: HttpResponse, heartbeat: Heartbeat) -> AsyncIterator[Chunk]:
    """Read the chunks of an upstream that speaks OpenAI; BrokenStream if one is not a chunk."""
    progress, content_seen = Progress(), False
    async for event in events(response, heartbeat):
        data = event.data.strip()
        if data == "[DONE]":
            # `[DONE]` means that the answer is complete: only its finish reason is missing.
            for index in sorted(progress.open) if content_seen else ():
                yield {"choices": [{"index": index, "delta": {}, "finish_reason": "stop"}]}
            return
        if not data:
            continue
        if event.name == "error":
            raise ErrorEvent(read_named(data))
        try:
            chunk = json_codec.loads(data)
        except json_codec.JSONError:
            raise BrokenStream(INVALID) from None
        if not isinstance(chunk, dict):
            raise BrokenStream(INVALID)
        content_seen = progress.take(chunk)[0] or content_seen
        yield chunk


@dataclass(eq=False, slots=True)
class TranslatedStream:
    """Chunks, encoded in the caller's dialect."""

    _chunks: AsyncIterator[Chunk]
    _plugin: str  # the source of the chunks, for the log
    _model: str | None  # replaces `model` in each chunk, unless None
    _encoder: StreamEncoder
    _limits: StreamLimits
    _response: HttpResponse | None  # behind the chunks; None for a provider in process
    _heartbeat: Heartbeat
    _buffered: list[Chunk] = field(default_factory=list)
    _usage: dict[str, Any] | None = None
    _content_chunks: int = 0
    _progress: Progress = field(default_factory=Progress)
    _ended: bool = False

    @property
    def is_empty(self) -> bool:
        """As of `PassthroughStream`."""
        return self._progress.is_empty

    @property
    def sent(self) -> StreamEncoder:
        """As of `PassthroughStream`."""
        return self._encoder

    async def open(self, on_role: Callable[[], None]) -> None:
        """As `PassthroughStream.open`; CannotServe if the plugin raises it."""
        has_role = False
        while not self._content_chunks:
            self._buffered.append(await self._next())
            if not (self._content_chunks or has_role) and self._progress.open:
                has_role = True
                on_role()

    async def _next(self) -> Chunk:
        """Return the next chunk; StopAsyncIteration at the end of a complete answer."""
        try:
            chunk = await anext(self._chunks)
        except StopAsyncIteration:
            self._ended = True
            if self._progress.complete:
                raise
            raise TruncatedStream("The upstream cut the answer off.") from None
        except BrokenStream:
            raise
        except CannotServe as error:
            if not self._content_chunks:
                raise
            raise PluginBroke(error.message) from error
        except Exception as error:
            if isinstance(error, aiohttp.ClientError | OSError) and self._response is not None:
                raise TruncatedStream(CONNECTION_BROKE) from error
            logger.exception("the plugin %s failed in its stream", self._plugin)
            raise PluginBroke("The provider's plugin failed.") from error
        return self._examine(chunk)

    def _examine(self, chunk: Chunk) -> Chunk:
        if not isinstance(chunk, dict):
            raise BrokenStream("The provider's plugin yielded something that is not a chunk.")
        self._content_chunks += self._progress.take(chunk)[0]
        if isinstance(chunk.get("usage"), dict):
            self._usage = chunk["usage"]
        return chunk if self._model is None else {**chunk, "model": self._model}

    async def _all(self, idle: StreamTimeout) -> AsyncGenerator[Chunk, None]:
        """Comments and pings of the response, which are not chunks, count as activity too."""
        for chunk in self._buffered:
            yield chunk
        self._heartbeat.on_beat = idle.wait
        while True:
            idle.wait()
            try:
                chunk = await self._next()
            except StopAsyncIteration:
                return
            idle.waiting_since = None
            yield chunk

    async def write_to(self, writer: ResponseWriter) -> None:
        with StreamTimeout(self._limits) as idle:
            async with aclosing(self._all(idle)) as chunks:
                async for chunk in chunks:
                    if data := self._encoded(self._encoder.encode, chunk):
                        await writer.write(data)
        await writer.end(self._encoded(self._encoder.finish))

    def _encoded(self, encode: Callable[..., bytes], *chunk: Chunk) -> bytes:
        try:
            return encode(*chunk)
        except MALFORMED as error:
            logger.exception("the chunks of %s are not a valid answer", self._plugin)
            raise BrokenStream(INVALID) from error

    async def fold(self) -> Chunk:
        """Read to the end and fold the chunks into one object; BrokenStream if it breaks."""
        with StreamTimeout(self._limits) as idle:
            chunks = [chunk async for chunk in self._all(idle)]
        try:
            return fold(chunks)
        except MALFORMED as error:
            logger.exception("the chunks of %s are not a valid answer", self._plugin)
            raise BrokenStream("The provider's chunks are not a valid answer.") from error

    def used(self) -> Mapping[str, Any]:
        return counted(self._usage, self._content_chunks)

    async def close(self) -> None:
        if hasattr(self._chunks, "aclose"):
            try:
                await self._chunks.aclose()
            except Exception:
                logger.exception("the plugin %s failed while its stream was closed", self._plugin)
        if self._response is not None:
            await self._response.finish(whole=self._ended and self._progress.complete)


AnswerStream = PassthroughStream | TranslatedStream


class StreamLimits(NamedTuple):
    """How long a stream may be silent, and how long it may take in all, in seconds."""

    idle_s: float
    total_s: float


class StreamTimeout:
    """Ends its `with` block by IdleStream or EndlessStream if a limit is reached.

    It cancels the task, whatever that waits for, and has one timer instead of one for each chunk.
    """

    def __init__(self, limits: StreamLimits) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._idle_s = limits.idle_s
        self.waiting_since: float | None = None  # in the loop's time; None when a wait has ended
        self._error: BrokenStream | None = None
        self._until_s = self._loop.time() + limits.total_s
        self._timer = self._loop.call_later(min(limits), self._check)

    def wait(self) -> None:
        self.waiting_since = self._loop.time()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._timer.cancel()
        if self._error is None:
            return
        assert self._task is not None
        # If someone else has cancelled the task as well, that holds.
        if self._task.uncancel() == 0 and isinstance(error, asyncio.CancelledError):
            raise self._error from None

    def _check(self) -> None:
        now = self._loop.time()
        since = self.waiting_since if self.waiting_since is not None else now
        due = min(since + self._idle_s, self._until_s)
        if due > now:
            self._timer = self._loop.call_at(due, self._check)
            return
        self._error = EndlessStream() if self._until_s <= now else IdleStream()
        assert self._task is not None
        self._task.cancel()
