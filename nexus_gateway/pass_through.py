"""The stream of an upstream that speaks as the caller does: its bytes are passed on.

Up to the first content the bytes are read. After it, where both sides can, they are *pushed*: what
comes from the upstream goes through the passage to the caller's transport in the same turn of the
loop, and the request's task sleeps until the end. It is woken in between only when the caller does
not take what comes: then the upstream waits, and nobody else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import aiohttp

from nexus_gateway.answer import ODD_SHAPES
from nexus_gateway.dialects.dialect import Passage
from nexus_gateway.idle_watch import IdleWatch
from nexus_gateway.receiving import HttpAnswer
from nexus_gateway.stream_errors import BrokenStream, TruncatedStream
from nexus_gateway.streams import Outlet, Pipe

_CUT = "The upstream's connection broke."


class PassThrough:
    """A stream that is passed on (a `streams.AnswerStream`).

    Args:
        answer: of the upstream.
        passage: what is done to its bytes.
        idle_s: the longest silence in its midst.
    """

    def __init__(self, answer: HttpAnswer, passage: Passage, idle_s: float) -> None:
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

    async def pour(self, outlet: Outlet) -> None:
        """Send whole events as they come, and end."""
        passage, last = self._passage, self._first
        if not passage.done:
            await outlet.write(self._first)
            with IdleWatch(self._idle_s, self._answer.close) as watch:
                pipe = outlet.pipe()
                if pipe is None:
                    last = await self._by_hand(outlet, watch)
                else:
                    last = await self._by_push(outlet, pipe, watch)
        await outlet.end(last)

    async def _by_hand(self, outlet: Outlet, watch: IdleWatch) -> bytes:
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

    async def _by_push(self, outlet: Outlet, pipe: Pipe, watch: IdleWatch) -> bytes:
        """Let blocks go from transport to transport; return the last one."""
        flow = _Flow(self._passage, pipe, self._answer, watch)
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


def _passed(passage: Passage, data: bytes) -> bytes:
    try:
        return passage.feed(data) if data else passage.end()
    except ODD_SHAPES as error:
        raise BrokenStream("The upstream sent something that is not an answer.") from error


class _Flow:
    """The midst of a stream: from its first content to its last, without a task.

    Args:
        passage: what is done to the bytes.
        pipe: to the caller.
        answer: waits while the caller takes nothing.
        watch: knows when the upstream was heard last.
    """

    def __init__(self, passage: Passage, pipe: Pipe, answer: HttpAnswer, watch: IdleWatch) -> None:
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
