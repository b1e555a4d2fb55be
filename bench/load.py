"""The load: limited in count and time, on loopback only, with every response checked.

    python bench/load.py PORT SCRIPT --requests N --callers N
        [--apart MS] [--model NAME] [--header NAME:VALUE …] [--limit SECONDS]

The script (see upstream.py) is part of the message, so that all requests name the same model. A
request without a response within the limit is an error. Prints one line of JSON: requests, errors,
seconds, and latencies in ms (to the first content, to the end) as p50, p95 and p99.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import cast

try:
    import uvloop
except ImportError:  # the standard loop works too, but is slower
    uvloop = None  # type: ignore[assignment,unused-ignore]

# The last chunk with the line end before it, since a head may end in a 0 too.
LAST = b"\r\n0\r\n\r\n"
FRAME = re.compile(rb"\r\n[0-9a-f]+\r\n", re.IGNORECASE)
WHOLE = b"Nothing much, and you?"
CONTENT = (b'"content": "word', b'"content":"word', b'"content": "x', b'"content":"x')


@dataclass
class Tally:
    """What was measured."""

    left: int
    first_ms: list[float] = field(default_factory=list)
    total_ms: list[float] = field(default_factory=list)
    errors: int = 0


class Caller(asyncio.Protocol):
    """One caller: sends the next request as soon as it has a response, until none is left."""

    def __init__(
        self, request: bytes, chunks: int, tally: Tally, done: asyncio.Future[None]
    ) -> None:
        self._request = request
        self._chunks = chunks
        self._tally = tally
        self._done = done

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def _send(self) -> None:
        if self._tally.left <= 0:
            self._finish()
            return
        self._tally.left -= 1
        self._parts: list[bytes] = []
        self._first_s = 0.0
        self._begun_s = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Collect a piece; check only for the first content and the end."""
        self._parts.append(data)
        if not self._first_s and any(mark in data for mark in CONTENT):
            self._first_s = time.perf_counter()
        if self._chunks:
            tail = data if len(data) >= len(LAST) else b"".join(self._parts[-3:])
            if tail.endswith(LAST):
                self._end()
        elif self._is_whole():
            self._end()

    def _is_whole(self) -> bool:
        data = b"".join(self._parts)
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = data[:end].lower()
        at = head.find(b"content-length:")
        if at < 0:
            return data.endswith(LAST)
        return len(data) - end - 4 >= int(head[at + 15 :].split(b"\r\n", 1)[0])

    def _end(self) -> None:
        now_s = time.perf_counter()
        data = b"".join(self._parts)
        self._tally.errors += not is_good(data, self._chunks)
        self._tally.total_ms.append((now_s - self._begun_s) * 1000)
        if self._first_s:
            self._tally.first_ms.append((self._first_s - self._begun_s) * 1000)
        self._send()

    def _finish(self) -> None:
        if not self._done.done():
            self._done.set_result(None)
        self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        """Finish; a response that was cut off is missing in the tally."""
        if not self._done.done():
            self._done.set_result(None)


def is_good(data: bytes, chunks: int) -> bool:
    """Return whether a response is complete: its status, all its chunks, its end."""
    if not data.startswith(b"HTTP/1.1 200"):
        return False
    if not chunks:
        return WHOLE in data
    if _contents(data) != chunks:
        # A gateway may split its frames anywhere, even within a searched word.
        data = FRAME.sub(b"", data)
    return _contents(data) == chunks and b"[DONE]" in data


def _contents(data: bytes) -> int:
    return max(data.count(mark) for mark in CONTENT)


def chunks_of(script: str) -> int:
    """Return the number of content chunks of a script's response; 0 if it is not streamed."""
    return int(script.split("-")[1]) if script.startswith("stream") else 0


def request_for(port: int, script: str, model: str = "any", headers: Iterable[str] = ()) -> bytes:
    """Return the request as bytes.

    Args:
        port: of the gateway.
        script: selects the upstream's response.
        model: its name at the gateway.
        headers: additional ones, each as NAME:VALUE.
    """
    message = {"role": "user", "content": f"{script}: hello there, what is new today?"}
    payload = {"model": model, "messages": [message], "stream": script != "whole"}
    body = json.dumps(payload).encode()
    lines = [
        "POST /v1/chat/completions HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def load(request: bytes, chunks: int, tally: Tally, arguments: argparse.Namespace) -> None:
    """Send the requests that are left in the tally; return when all have a response."""
    loop = asyncio.get_running_loop()
    count, waits = tally.left, []
    with contextlib.suppress(OSError):  # also a TimeoutError
        async with asyncio.timeout(arguments.limit):
            for _ in range(min(arguments.callers, count)):
                done: asyncio.Future[None] = loop.create_future()
                waits.append(done)
                await loop.create_connection(
                    lambda done=done: Caller(request, chunks, tally, done),  # type: ignore[misc]
                    "127.0.0.1",
                    arguments.port,
                )
                if arguments.apart:
                    await asyncio.sleep(arguments.apart / 1000)
            await asyncio.gather(*waits)
    tally.left = 0
    tally.errors += count - len(tally.total_ms)


def percentiles(values: list[float]) -> dict[str, float]:
    """Return p50, p95 and p99."""
    if len(values) < 2:
        return dict.fromkeys(("p50", "p95", "p99"), values[0] if values else 0.0)
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {name: round(cuts[int(name[1:]) - 1], 2) for name in ("p50", "p95", "p99")}


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("script")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--apart", type=float, default=0, help="ms from one caller to the next")
    parser.add_argument("--model", default="any")
    parser.add_argument("--header", action="append", default=[], metavar="NAME:VALUE")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds")
    arguments = parser.parse_args()
    request = request_for(arguments.port, arguments.script, arguments.model, arguments.header)
    tally, begun_s = Tally(arguments.requests), time.perf_counter()
    chunks = chunks_of(arguments.script)
    await load(request, chunks, tally, arguments)
    summary = {
        "requests": len(tally.total_ms),
        "errors": tally.errors,
        "seconds": round(time.perf_counter() - begun_s, 3),
        "first_ms": percentiles(tally.first_ms),
        "total_ms": percentiles(tally.total_ms),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if uvloop else None) as runner:
        runner.run(main())
