"""The load: bounded in count and time, on loopback only, every answer checked.

    python bench/load.py PORT SCRIPT --requests N --callers N
        [--apart MS] [--model NAME] [--header NAME:VALUE …] [--limit SECONDS]

The script (see upstream.py) stands in the message, so that every request asks for one model. What
is not answered within the limit is an error. Prints one line of JSON: requests, errors, seconds,
and latencies in ms (to the first content, to the end) as p50, p95 and p99.
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
except ImportError:  # the stock loop does as well, only slower
    uvloop = None  # type: ignore[assignment,unused-ignore]

# The last chunk, and what must stand before it: a head may end in a 0 as well.
LAST = b"\r\n0\r\n\r\n"
FRAME = re.compile(rb"\r\n[0-9a-f]+\r\n", re.IGNORECASE)
WHOLE = b"Nothing much, and you?"
CONTENT = (b'"content": "word', b'"content":"word', b'"content": "x', b'"content":"x')


@dataclass
class Tally:
    """What has been measured."""

    left: int
    first_ms: list[float] = field(default_factory=list)
    total_ms: list[float] = field(default_factory=list)
    errors: int = 0


class Caller(asyncio.Protocol):
    """One caller: asks again as soon as it has its answer, while there is something left to ask."""

    def __init__(
        self, request: bytes, chunks: int, tally: Tally, done: asyncio.Future[None]
    ) -> None:
        self._request = request
        self._chunks = chunks
        self._tally = tally
        self._done = done

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the first time."""
        self._transport = cast(asyncio.Transport, transport)
        self._ask()

    def _ask(self) -> None:
        if self._tally.left <= 0:
            self._finish()
            return
        self._tally.left -= 1
        self._parts: list[bytes] = []
        self._first_s = 0.0
        self._begun_s = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Take a piece; look only for the first content and for the end."""
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
        self._ask()

    def _finish(self) -> None:
        if not self._done.done():
            self._done.set_result(None)
        self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        """End; an answer that was cut off is missing in the tally."""
        if not self._done.done():
            self._done.set_result(None)


def is_good(data: bytes, chunks: int) -> bool:
    """Tell whether an answer is whole: its status, every one of its chunks, its end."""
    if not data.startswith(b"HTTP/1.1 200"):
        return False
    if not chunks:
        return WHOLE in data
    if _said(data) != chunks:
        # A gateway may cut its frames wherever it likes, also within a word that is looked for.
        data = FRAME.sub(b"", data)
    return _said(data) == chunks and b"[DONE]" in data


def _said(data: bytes) -> int:
    return max(data.count(mark) for mark in CONTENT)


def chunks_of(script: str) -> int:
    """Return how many content chunks a script's answer has, 0 for one in a single piece."""
    return int(script.split("-")[1]) if script.startswith("stream") else 0


def request_for(port: int, script: str, model: str = "any", headers: Iterable[str] = ()) -> bytes:
    """Return the request as bytes.

    Args:
        port: where it goes.
        script: what the upstream is to answer.
        model: as the gateway knows it.
        headers: more of them, each as NAME:VALUE.
    """
    message = {"role": "user", "content": f"{script}: hello there, what is new today?"}
    asked = {"model": model, "messages": [message], "stream": script != "whole"}
    body = json.dumps(asked).encode()
    lines = [
        "POST /v1/chat/completions HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def load(request: bytes, chunks: int, tally: Tally, words: argparse.Namespace) -> None:
    """Send as many requests as are left in the tally; returns when all are answered."""
    loop = asyncio.get_running_loop()
    asked, waits = tally.left, []
    with contextlib.suppress(OSError):  # also a TimeoutError
        async with asyncio.timeout(words.limit):
            for _ in range(min(words.callers, asked)):
                done: asyncio.Future[None] = loop.create_future()
                waits.append(done)
                await loop.create_connection(
                    lambda done=done: Caller(request, chunks, tally, done),  # type: ignore[misc]
                    "127.0.0.1",
                    words.port,
                )
                if words.apart:
                    await asyncio.sleep(words.apart / 1000)
            await asyncio.gather(*waits)
    tally.left = 0
    tally.errors += asked - len(tally.total_ms)


def percentiles(values: list[float]) -> dict[str, float]:
    """Return p50, p95 and p99."""
    if len(values) < 2:
        return dict.fromkeys(("p50", "p95", "p99"), values[0] if values else 0.0)
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {name: round(cuts[int(name[1:]) - 1], 2) for name in ("p50", "p95", "p99")}


async def main() -> None:
    """Run as the arguments say."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("script")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--apart", type=float, default=0, help="ms from one caller to the next")
    parser.add_argument("--model", default="any")
    parser.add_argument("--header", action="append", default=[], metavar="NAME:VALUE")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds")
    words = parser.parse_args()
    request = request_for(words.port, words.script, words.model, words.header)
    tally, begun_s = Tally(words.requests), time.perf_counter()
    chunks = chunks_of(words.script)
    await load(request, chunks, tally, words)
    told = {
        "requests": len(tally.total_ms),
        "errors": tally.errors,
        "seconds": round(time.perf_counter() - begun_s, 3),
        "first_ms": percentiles(tally.first_ms),
        "total_ms": percentiles(tally.total_ms),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if uvloop else None) as runner:
        runner.run(main())
