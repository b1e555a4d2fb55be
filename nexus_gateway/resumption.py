"""Going on with an answer that broke: a sink that remembers, and one that joins.

Only where the owner sets RESUME: an answer of two models is not always what is wanted, and it
costs the prompt twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nexus_gateway import continuation
from nexus_gateway.continuation import Said
from nexus_gateway.dialects.dialect import Whole
from nexus_gateway.errand import Memory, Report, Sink
from nexus_gateway.streams import Pipe

# What is longer than this is not gone on with.
MOST_REMEMBERED = 4 * 1024 * 1024


class Remembering:
    """A sink that keeps what went through it (an `errand.Memory`).

    Args:
        sink: where it goes.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._blocks: list[bytes] = []
        self._size = 0
        self.start = sink.start
        self.fail = sink.fail
        self.whole = sink.whole

    def said(self) -> Said | None:
        """Return what went through, None where it can't be gone on with."""
        if self._size > MOST_REMEMBERED:
            return None
        return continuation.read_said(self._blocks)

    def remember(self, data: bytes) -> None:
        """Keep whole events."""
        self._size += len(data)
        if self._size > MOST_REMEMBERED:
            self._blocks.clear()
        else:
            self._blocks.append(data)

    async def write(self, data: bytes) -> None:
        """Send whole events."""
        await self._sink.write(data)
        self.remember(data)

    async def end(self, data: bytes = b"") -> None:
        """End the stream."""
        await self._sink.end(data)

    def pipe(self) -> Pipe | None:
        """Return a way to write without waiting, that remembers as well."""
        pipe = self._sink.pipe()
        return None if pipe is None else _RememberingPipe(pipe, self.remember)


class _RememberingPipe:
    def __init__(self, pipe: Pipe, remember: Callable[[bytes], None]) -> None:
        self._write = pipe.write
        self._remember = remember
        self.drain = pipe.drain

    def write(self, data: bytes) -> bool:
        self._remember(data)
        return self._write(data)


class Joining:
    """A sink for the one who goes on (an `errand.Sink`).

    Args:
        sink: where the first part went.
        said: the first part.
    """

    def __init__(self, sink: Memory, said: Said) -> None:
        self._sink = sink
        self._said = said

    async def start(self, report: Report) -> None:
        """Tell in a comment who goes on."""
        assert report.instance is not None
        name = report.instance.name.replace("\r", " ").replace("\n", " ")
        await self._sink.write(f": resumed by {name}\n\n".encode())

    async def write(self, data: bytes) -> None:
        """Send whole events."""
        if joined := continuation.under_one_head(data, self._said):
            await self._sink.write(joined)

    async def end(self, data: bytes = b"") -> None:
        """End the stream."""
        await self._sink.end(continuation.under_one_head(data, self._said))

    def pipe(self) -> Pipe | None:
        """Say that each block has to be looked into."""
        return None

    async def fail(self, status: int, body: dict[str, Any]) -> None:
        """End the stream with an error event."""
        await self._sink.fail(status, body)

    async def whole(self, report: Report, answer: Whole) -> None:
        """Never asked: what is gone on with is a stream."""
        raise NotImplementedError("a stream is gone on with by a stream")
