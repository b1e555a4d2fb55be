"""The upstream of the measured gateways: it sends prepared bytes, selected by the request.

    python bench/upstream.py PORT

`stream-32-0` streams 32 chunks at once, `stream-32-20` one every 20 ms, `whole` sends one JSON
object, `flood-100` streams 100 MiB as fast as they are read. The script's name may be anywhere in
the request, so that gateways may rewrite the rest. The upstream also answers health checks, lists
one model, `any`, and accepts spans like a trace collector, but drops them.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from functools import cache
from typing import cast

try:
    import uvloop
except ImportError:  # the standard loop works too, but is slower
    uvloop = None  # type: ignore[assignment,unused-ignore]

SCRIPT = re.compile(rb"(stream|flood)-(\d+)(?:-(\d+))?")
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
FLOOD_CHUNK = 64 * 1024


def _event(delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    data = b"data: " + json.dumps({**head, "choices": [choice]}).encode() + b"\n\n"
    return _framed(data)


def _framed(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@cache
def events(count: int) -> tuple[bytes, ...]:
    """Return the events of a stream with `count` content chunks, each as an HTTP chunk."""
    role = _event({"role": "assistant", "content": ""})
    words = [_event({"content": f"word{n} "}) for n in range(count)]
    return (role, *words, _event({}, "stop"), _framed(b"data: [DONE]\n\n") + END)


def _whole() -> bytes:
    message = {"role": "assistant", "content": "Nothing much, and you?"}
    answer = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 6, "total_tokens": 15},
    }
    return _response(b"200 OK", json.dumps(answer).encode())


def _response(status: bytes, body: bytes) -> bytes:
    head = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\n" % status
    return head + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)


WHOLE = _whole()
MODELS = _response(b"200 OK", b'{"object":"list","data":[{"id":"any","object":"model"}]}')
HEALTHY = _response(b"200 OK", b"{}")
OTHER_PATHS = {
    b"GET /v1/models": MODELS,
    b"GET /health": HEALTHY,
    b"POST /v1/traces": HEALTHY,
}
# Routers probe other paths too, such as /metrics.
UNKNOWN = _response(b"404 Not Found", b"{}")
BURSTS = cache(lambda count: HEAD + b"".join(events(count)))


class Answerer(asyncio.Protocol):
    """One connection, with one request at a time."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._data = b""
        self._writable = asyncio.Event()
        self._writable.set()
        self._task: asyncio.Task[None] | None = None

    def connection_lost(self, error: Exception | None) -> None:
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        """Collect a piece of a request; answer when it is complete."""
        self._data += data
        end = self._data.find(b"\r\n\r\n")
        if end < 0:
            return
        if not self._is_complete(end + 4):
            return
        request, self._data = self._data, b""
        self._answer(request)

    def _is_complete(self, start: int) -> bool:
        head = self._data[:start].lower()
        at = head.find(b"content-length:")
        if at >= 0:
            return len(self._data) - start >= int(head[at + 15 : head.index(b"\r", at)])
        return b"chunked" not in head or self._data.endswith(END)

    def _answer(self, request: bytes) -> None:
        if not request.startswith(b"POST /v1/chat/completions "):
            self._transport.write(OTHER_PATHS.get(request.split(b" HTTP/", 1)[0], UNKNOWN))
            return
        script = SCRIPT.search(request)
        if script is None or b'"stream":true' not in request.replace(b": ", b":"):
            self._transport.write(WHOLE)
            return
        kind, count, delay_ms = script[1], int(script[2]), int(script[3] or 0)
        if kind == b"flood":
            self._task = asyncio.ensure_future(self._flood(count * 1024 * 1024))
        elif delay_ms:
            self._transport.write(HEAD)
            self._pace(events(count), 0, delay_ms / 1000)
        else:
            self._transport.write(BURSTS(count))

    def _pace(self, pieces: tuple[bytes, ...], at: int, delay_s: float) -> None:
        """Send an event, and the next one after the delay; the last two together."""
        if self._transport.is_closing():
            return
        if at == len(pieces) - 2:
            self._transport.write(pieces[at] + pieces[at + 1])
            return
        self._transport.write(pieces[at])
        loop = asyncio.get_running_loop()
        loop.call_later(delay_s if at else 0, self._pace, pieces, at + 1, delay_s)

    async def _flood(self, size: int) -> None:
        self._transport.write(HEAD)
        chunk = _event({"content": "x" * FLOOD_CHUNK})
        for _ in range(size // FLOOD_CHUNK):
            await self._writable.wait()
            self._transport.write(chunk)
            await asyncio.sleep(0)
        self._transport.write(b"".join(events(0)))


async def main() -> None:
    """Serve until the process is stopped."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Answerer, "127.0.0.1", int(sys.argv[1]), backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if uvloop else None) as runner:
        runner.run(main())
