"""The same request and the same bytes of an upstream: the same answer and record on both paths."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from typing import NamedTuple

import pytest
import ways
from cuts import cut
from fakes import make_instance, serving
from hypothesis import given
from hypothesis import strategies as st
from raw import BODY, EVENT, FINISH, HEAD, asking, chunked, connected

from nexus_gateway.proxy.record import RequestRecord
from nexus_gateway.testing.server import RESET_ON_CLOSE

TURNS = 12  # of the loop, in which a piece is read and passed on
WHOLE = json.dumps(
    {
        "id": "c-1",
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }
).encode()


def sized(body: bytes, *lines: bytes, status: bytes = b"200 OK") -> bytes:
    kind = b"Content-Type: application/json"
    head = (b"HTTP/1.1 " + status, kind, *lines, b"Content-Length: %d" % len(body), b"", body)
    return b"\r\n".join(head)


def streamed(*events: bytes) -> bytes:
    return HEAD + b"\r\n" + chunked(b"\n\n".join([*events, b""]))


ROLE = b'data: {"model":"m","choices":[{"index":0,"delta":{"role":"assistant"}}]}'
ERROR = b'data: {"error":{"message":"overloaded","type":"server_error","code":"503"}}'
USAGE = b'data: {"model":"m","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}'
REFUSED = json.dumps({"error": {"message": "no", "type": "x", "code": None}}).encode()
ANSWERS = {
    "a stream": HEAD + b"\r\n" + chunked(BODY),
    "a stream in small chunks": HEAD + b"\r\n" + chunked(BODY, 7),
    "a stream with its usage": streamed(
        ROLE, *(EVENT % b"w%d " % n for n in range(9)), FINISH, USAGE, b"data: [DONE]"
    ),
    "a stream without done": streamed(ROLE, EVENT % b"one", FINISH),
    "a stream without content": streamed(ROLE, FINISH, b"data: [DONE]"),
    "an error before the content": streamed(ROLE, ERROR),
    "an error in the stream": streamed(EVENT % b"one", EVENT % b"two", ERROR),
    "no JSON in the stream": streamed(EVENT % b"one", b"data: {", EVENT % b"two"),
    "a stream that ends early": streamed(EVENT % b"one", EVENT % b"two"),
    "an invalid chunk": HEAD + b"\r\n" + chunked(BODY)[: -len(b"0\r\n\r\n")] + b"zz\r\n",
    "a whole answer": sized(WHOLE),
    "a whole answer in chunks": HEAD.replace(b"text/event-stream", b"application/json")
    + b"\r\n"
    + chunked(WHOLE),
    "limits": sized(WHOLE, b"x-ratelimit-limit-requests: 9", b"x-ratelimit-remaining-requests: 4"),
    "an empty answer": sized(WHOLE.replace(b'"hi"', b'""')),
    "not JSON": sized(b"<html>"),
    "an error in a 200": sized(REFUSED),
    "two answers": sized(WHOLE) + sized(WHOLE),
    "a byte too many": HEAD + b"\r\n" + chunked(BODY) + b"x",
    **{
        f"status {status.decode()}": sized(REFUSED, status=status)
        for status in (b"400 Bad", b"401 No", b"404 Not", b"429 Slow", b"500 Bad", b"301 Moved")
    },
}


class Fault(NamedTuple):
    """What happens to the bytes of an answer on their way."""

    places: list[int]  # where they are cut into pieces
    end: int | None  # after so many the connection ends
    flip: int | None  # this one is another
    resets: bool

    def pieces(self, answer: bytes) -> list[bytes]:
        if self.flip is not None:
            at = self.flip % len(answer)
            answer = answer[:at] + bytes([answer[at] ^ 0x11]) + answer[at + 1 :]
        if self.end is not None:
            answer = answer[: self.end % len(answer)]
        return cut(answer, self.places)


faults = st.builds(
    Fault,
    st.lists(st.integers(0, 2000), max_size=4),
    st.none() | st.integers(0, 2000),
    st.none() | st.integers(0, 2000),
    st.booleans(),
)


class Player:
    """An upstream whose first answer has a fault."""

    def __init__(self, answer: bytes, fault: Fault, second: bytes) -> None:
        self._fault = fault
        self._answers = [fault.pieces(answer), [second]]
        self._is_whole = fault.end is None and fault.flip is None
        self.served = 0
        self.running: list[asyncio.Task[None]] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.running.append(task)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                number, self.served = self.served, self.served + 1
                for piece in self._answers[min(number, 1)]:
                    writer.write(piece)
                    for _ in range(TURNS):
                        await asyncio.sleep(0)
                if not (number or self._is_whole):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        if self._fault.resets and not self._is_whole:
            connection = writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            writer.transport.abort()
        writer.close()


async def outcome(way: str, url: str, *, stream: bool) -> tuple[bytes, object]:
    """Return what the caller gets of an answer, and what the record says."""
    records: list[RequestRecord] = []
    with pytest.MonkeyPatch.context() as patch:
        ways.take(way, patch)
        instances = [make_instance(url), make_instance(url, 2)]
        async with serving(*instances, response_timeout_ms=5_000, idle_timeout_ms=5_000) as served:
            served.gateway.recorder.observers.append(records.append)
            async with connected(served) as (reader, writer):
                writer.write(asking(b"X-Request-Id: a", stream=stream))
                seen = await read_answer(reader)
            (record,) = records
    facts = record._replace(ended_s=0.0, first_ms=0.0, upstream_ms=0.0, total_ms=0.0, attempts=())
    tries = [(a.name, a.outcome, a.reason, a.status, a.scope, a.circuit) for a in record.attempts]
    return seen, (facts, tries)


async def read_answer(reader: asyncio.StreamReader) -> bytes:
    """Return an answer without what differs each time: times, and how it is cut into chunks."""
    async with asyncio.timeout(30):
        head = await reader.readuntil(b"\r\n\r\n")
        body = b""
        length = re.search(rb"Content-Length: (\d+)", head)
        if length is not None:
            body = await reader.readexactly(int(length[1]))
        else:
            while size := int(await reader.readline(), 16):
                body += (await reader.readexactly(size + 2))[:-2]
    head = re.sub(rb"(Server-Timing|Date): [^\r]*", rb"\1", head)
    return head + re.sub(rb"in [0-9.]+ ms", b"in time", body)


def same(answer: bytes, fault: Fault, second: bytes, *, stream: bool) -> None:
    async def both() -> None:
        player = Player(answer, fault, second)
        server = await asyncio.start_server(player, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        fast = await outcome("fast", url, stream=stream)
        asked, player.served = player.served, 0
        main = await outcome("direct", url, stream=stream)
        server.close()
        await asyncio.wait(player.running)
        await asyncio.sleep(0)  # then their sockets are closed
        assert fast == main
        assert asked == player.served

    asyncio.run(both())


@pytest.mark.proves("F12", "F17", "F18", "F21", "F22", "F24", "F66", "I-31")
@given(
    answer=st.sampled_from(sorted(ANSWERS)),
    fault=faults,
    second=st.sampled_from(sorted(ANSWERS)),
    stream=st.booleans(),
)
def test_any_bytes_of_an_upstream_mean_the_same_on_both_paths(
    answer: str, fault: Fault, second: str, stream: bool
) -> None:
    same(ANSWERS[answer], fault, ANSWERS[second], stream=stream)


@pytest.mark.parametrize("stream", [True, False])
def test_each_answer_in_one_piece_means_the_same_on_both_paths(stream: bool) -> None:
    good = ANSWERS["a stream" if stream else "a whole answer"]
    for answer in ANSWERS.values():
        same(answer, Fault([], None, None, False), good, stream=stream)
