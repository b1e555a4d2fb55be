"""Requests on the fast path, from the caller's first byte to the record."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import ways
from endpoints import BODIES, Native
from fakes import make_instance, serving
from raw import asking, connected, exchange
from waiting import until

from nexus_gateway.fastpath import connection as fast_connection
from nexus_gateway.fastpath.request import FastRequest
from nexus_gateway.proxy.record import RequestRecord
from nexus_gateway.routing.breaker import State
from nexus_gateway.secret import Secret
from nexus_gateway.testing import FakeUpstream, Reply, Served
from nexus_gateway.web import connections

LONG = Reply(text="word " * 2000)


class Taken:
    """What requests did on the fast path."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.finished: list[int] = []
        self.handed_over = 0
        finish, hand_over = FastRequest._finish, FastRequest._hand_over

        def note_finish(fast: FastRequest, status: int) -> None:
            self.finished.append(status)
            finish(fast, status)

        def note_hand_over(fast: FastRequest) -> None:
            self.handed_over += 1
            hand_over(fast)

        patch.setattr(FastRequest, "_finish", note_finish)
        patch.setattr(FastRequest, "_hand_over", note_hand_over)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Taken:
    ways.take("fast", monkeypatch)
    return Taken(monkeypatch)


def recording(served: Served) -> list[RequestRecord]:
    records: list[RequestRecord] = []
    served.gateway.recorder.observers.append(records.append)
    return records


async def answers(reader: asyncio.StreamReader, count: int) -> list[bytes]:
    """Read so many full answers, in order."""
    read = []
    for _ in range(count):
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
        length = head.partition(b"Content-Length: ")[2].partition(b"\r")[0]
        if length:
            read.append(head + await reader.readexactly(int(length)))
        else:
            read.append(head + await reader.readuntil(b"0\r\n\r\n"))
    return read


@pytest.mark.parametrize("stream", [True, False])
async def test_a_usual_request_is_not_seen_by_aiohttp(
    upstream: FakeUpstream, taken: Taken, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    def fail(*args: object) -> None:
        raise AssertionError("aiohttp was asked")

    async with serving(make_instance(upstream)) as served, connected(served) as (reader, writer):
        records = recording(served)
        monkeypatch.setattr(connections.ClientConnection, "data_received", fail)
        for _ in range(3):
            writer.write(asking(b"X-Request-Id: abc", stream=stream))
            (answer,) = await answers(reader, 1)
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"\r\nX-Request-Id: abc\r\n" in answer
    assert taken.finished == [200] * 3
    assert [(r.id, r.status, r.outcome, r.begun) for r in records] == [
        ("abc", 200, "success", 1)
    ] * 3


@pytest.mark.parametrize("path", sorted(BODIES.keys() - {"/v1/responses"}))
async def test_each_dialect_takes_it_if_its_bytes_pass_through(
    upstream: FakeUpstream, taken: Taken, path: str
) -> None:
    async with serving(make_instance(upstream, provider=Native)) as served:
        bodies = [
            {**BODIES[path], "stream": stream} for stream in (False, path != "/v1/embeddings")
        ]
        for body in bodies:
            fast, main = [await served.post(path, body, headers=h) for h in ({}, {"Via": "1.1 a"})]
            assert fast[:2] == main[:2]
            assert fast[0] == 200
            assert set(fast[2]) == set(main[2])
    assert taken.finished == [200, 200]


async def test_with_direct_path_off_no_request_takes_it(
    upstream: FakeUpstream, taken: Taken
) -> None:
    async with serving(make_instance(upstream), direct_path=False) as served:
        assert (await served.chat())[0] == 200
    assert (taken.finished, taken.handed_over) == ([], 0)


OFF: dict[str, dict[str, Any]] = {
    "hedging": {"hedge": True},
    "resuming": {"resume": True},
    "comments": {"keepalive_ms": 1000},
    "a queue": {"queue_timeout_ms": 1000},
}


@pytest.mark.parametrize("settings", OFF.values(), ids=OFF)
async def test_what_only_the_main_path_does_keeps_requests_there(
    upstream: FakeUpstream, taken: Taken, settings: dict[str, Any]
) -> None:
    async with serving(make_instance(upstream), **settings) as served:
        assert (await served.chat())[0] == 200
        served.gateway.settings = replace(served.gateway.settings, **dict.fromkeys(settings, 0))
        assert (taken.finished, taken.handed_over) == ([], 0)
        assert (await served.chat())[0] == 200  # a reload has turned it off
    assert taken.finished == [200]


async def test_debug_lines_are_written_by_the_main_path(
    upstream: FakeUpstream, taken: Taken, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "nexus_gateway")
    async with serving(make_instance(upstream)) as served:
        assert (await served.chat())[0] == 200
    assert (taken.finished, taken.handed_over) == ([], 0)


@pytest.mark.parametrize("stream", [True, False])
async def test_an_attempt_that_fails_is_followed_by_the_main_path(
    taken: Taken, stream: bool
) -> None:
    async with FakeUpstream() as bad, FakeUpstream() as good:
        bad.default = Reply(status=500)
        instances = [make_instance(bad), make_instance(good, 2)]
        async with serving(*instances) as served:
            records = recording(served)
            for number in range(8):
                session = {"X-Session-Id": str(number)}  # each may go to another instance
                status, _, headers = await served.chat(stream=stream, headers=session)
                assert status == 200
                assert headers["X-Nexus-Provider"] == "Fake (Key #2)"
        failed = [r for r in records if r.begun == 2]
        assert failed
        assert len(failed) == bad.hits() == taken.handed_over
        assert taken.finished == [200] * (8 - len(failed))
        assert all(r.attempts[0].reason == "answered 500" for r in failed)


@pytest.mark.parametrize("keys", [(), ("gw-secret",)])
async def test_the_key_is_checked(
    upstream: FakeUpstream, taken: Taken, keys: tuple[str, ...]
) -> None:
    settings = {"gateway_keys": tuple(map(Secret, keys))}
    async with serving(make_instance(upstream), **settings) as served:
        for token in ("", "wrong", "gw-secret"):
            authorization = {"Authorization": f"Bearer {token}"} if token else {}
            status, text, _ = await served.chat(headers=authorization)
            assert status == (200 if token in keys or not keys else 401)
            assert "gw-secret" not in text
    assert taken.finished == [200] * (1 if keys else 3)


@pytest.mark.proves("F29", "I-33")
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("begins", [True, False])
async def test_a_caller_that_leaves_ends_its_upstream(
    upstream: FakeUpstream, taken: Taken, stream: bool, begins: bool
) -> None:
    upstream.default = Reply(hang_after=2) if begins and stream else Reply(hang=True)
    instance = make_instance(upstream)
    async with serving(instance) as served:
        records = recording(served)
        async with connected(served) as (reader, writer):
            writer.write(asking(stream=stream))
            await until(lambda: upstream.requests)
            if begins and stream:
                await reader.readuntil(b"\n\n")
        assert await upstream.requests[0].gone(30)
        await until(lambda: records)
        assert instance.in_flight == served.gateway.drain.in_flight == 0
    (record,) = records
    assert (record.status, record.outcome, record.begun) == (499, "cancelled", 1)
    assert instance.default.breaker.state() is State.CLOSED
    assert taken.finished == [499]


async def test_requests_that_come_meanwhile_are_answered_in_order(
    upstream: FakeUpstream, taken: Taken
) -> None:
    upstream.default = Reply(head_delay_s=0.05)
    async with serving(make_instance(upstream)) as served, connected(served) as (reader, writer):
        writer.write(asking(b"X-Request-Id: r0", stream=True))
        await until(lambda: served.gateway.drain.in_flight)
        for number in range(1, 5):
            writer.write(asking(b"X-Request-Id: r%d" % number, stream=number % 2 == 0))
            await asyncio.sleep(0.01)
        writer.write(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        read = await answers(reader, 6)
    ids = [f"X-Request-Id: r{n}".encode() in answer for n, answer in enumerate(read[:5])]
    assert ids == [True] * 5
    assert read[5].startswith(b"HTTP/1.1 200 ")
    assert 200 in taken.finished


async def test_a_flood_of_requests_ahead_is_not_read(upstream: FakeUpstream, taken: Taken) -> None:
    upstream.default = Reply(hang=True)
    async with serving(make_instance(upstream)) as served, connected(served) as (_, writer):
        writer.write(asking())
        await until(lambda: served.gateway.drain.in_flight)
        writer.write(asking() * 200_000)
        await asyncio.sleep(0.2)
        assert writer.transport.get_write_buffer_size() > 10_000_000


@pytest.mark.parametrize("cuts", [[-20], [20], [-30, -5], [-58]])
async def test_a_request_in_several_reads_is_served(
    upstream: FakeUpstream, taken: Taken, cuts: list[int]
) -> None:
    data = asking(stream=True)
    places = [0, *(place % len(data) for place in cuts), len(data)]
    async with serving(make_instance(upstream)) as served, connected(served) as (reader, writer):
        for begin, end in pairwise(places):
            writer.write(data[begin:end])
            await asyncio.sleep(0.02)
        (answer,) = await answers(reader, 1)
        assert b"[DONE]" in answer
        writer.write(asking())
        await answers(reader, 1)
    assert taken.finished == ([] if cuts == [20] else [200, 200])


async def test_a_body_that_does_not_come_is_aiohttps(
    upstream: FakeUpstream, taken: Taken, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast_connection, "BODY_S", 0.05)
    async with serving(make_instance(upstream), idle_timeout_ms=100) as served:
        seen = await exchange(served, asking()[:-5])
        assert seen.statuses == [408]
    async with serving(make_instance(upstream)) as served, connected(served) as (reader, writer):
        writer.write(asking()[:-5])
        await until(lambda: served.gateway.drain.in_flight)
        writer.write(asking()[-5:])
        await answers(reader, 1)
        writer.write(asking())  # again between two requests
        await answers(reader, 1)
    assert taken.finished == [200]


async def test_an_idle_limit_does_not_end_a_running_stream(
    upstream: FakeUpstream, taken: Taken, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "IDLE_S", 0.1)
    upstream.default = Reply(text="word " * 20, delay_s=0.02)
    async with serving(make_instance(upstream)) as served, connected(served) as (reader, writer):
        writer.write(asking(stream=True))
        (answer,) = await answers(reader, 1)
        assert b"[DONE]" in answer
        assert await asyncio.wait_for(reader.read(), 30) == b""  # but an idle connection
    assert taken.finished == [200]


@pytest.mark.proves("I-50")
async def test_a_drain_waits_for_an_open_stream(upstream: FakeUpstream, taken: Taken) -> None:
    upstream.default = Reply(text="word " * 20, delay_s=0.01)
    async with serving(make_instance(upstream)) as served, connected(served) as (reader, writer):
        writer.write(asking(stream=True))
        await reader.readuntil(b"\r\n\r\n")
        drain = served.gateway.drain
        drain.begin()
        assert drain.in_flight == 1
        assert (await served.chat())[0] == 503
        waiting = asyncio.create_task(drain.wait(30))
        assert b"[DONE]" in await reader.readuntil(b"0\r\n\r\n")
        assert await waiting
    assert taken.finished == [200]


async def test_a_worker_that_leaves_ends_the_connection_after_the_answer(
    upstream: FakeUpstream, taken: Taken
) -> None:
    upstream.default = Reply(head_delay_s=0.05)
    async with serving(make_instance(upstream)) as served, connected(served) as (reader, writer):
        writer.write(asking(stream=True))
        await until(lambda: upstream.requests)
        served.gateway.drain.leaving.set()
        answer = await asyncio.wait_for(reader.read(), 30)
        assert b"\r\nConnection: close\r\n" in answer
        assert answer.endswith(b"0\r\n\r\n")
    assert taken.finished == [200]


@pytest.mark.proves("I-51")
@pytest.mark.parametrize("reply", [Reply(hang=True), Reply(hang_after=2)])
async def test_what_is_left_after_a_drain_ends_with_an_error(
    upstream: FakeUpstream, taken: Taken, reply: Reply
) -> None:
    upstream.default = reply
    async with serving(make_instance(upstream)) as served, connected(served) as (reader, writer):
        records = recording(served)
        writer.write(asking(stream=True))
        await until(lambda: upstream.requests)
        if reply.hang_after:
            await reader.readuntil(b"\n\n")
        drain = served.gateway.drain
        drain.begin()
        drain.expire()
        assert await drain.wait(30)
        last = b"0\r\n\r\n" if reply.hang_after else b"}"
        assert b"error" in await asyncio.wait_for(reader.readuntil(last), 30)
    assert [(r.status, r.outcome) for r in records] == [(503, "cancelled")]


async def test_a_shutdown_without_a_drain_lets_a_stream_end(
    upstream: FakeUpstream, taken: Taken
) -> None:
    upstream.default = Reply(hang_after=2)
    records: list[RequestRecord] = []
    async with serving(make_instance(upstream)) as served:
        served.gateway.recorder.observers.append(records.append)
        port = int(served.url.rsplit(":", 1)[1])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(asking(stream=True))
        await reader.readuntil(b"\n\n")
    assert [(r.status, r.outcome) for r in records] == [(499, "cancelled")]
    writer.close()


LIMITS: dict[str, tuple[Reply, dict[str, int], str]] = {
    "silence": (Reply(hang_after=2), {"idle_timeout_ms": 80}, "nothing arrived"),
    "total": (Reply(text="w " * 500, delay_s=0.01), {"stream_timeout_ms": 100}, "longer than"),
}


@pytest.mark.proves("F20", "I-31")
@pytest.mark.parametrize("case", LIMITS)
async def test_an_open_stream_has_its_limits(
    upstream: FakeUpstream, taken: Taken, case: str
) -> None:
    upstream.default, settings, _ = LIMITS[case]
    async with serving(make_instance(upstream), **settings) as served:
        records = recording(served)
        status, text, _ = await served.chat()
    assert status == 200
    assert "error" in text
    assert "[DONE]" not in text
    assert [(r.status, r.outcome) for r in records] == [(200, "failure")]
    assert taken.finished == [200]


@pytest.mark.proves("F14")
@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_that_does_not_begin_fails_over(taken: Taken, stream: bool) -> None:
    async with FakeUpstream() as slow, FakeUpstream() as good:
        slow.default = Reply(hang=True)
        instances = [make_instance(slow), make_instance(good, 2)]
        limits = {"first_token_timeout_ms": 60, "response_timeout_ms": 60 if not stream else 5000}
        async with serving(*instances, **limits) as served:
            records = recording(served)
            await until_slow_is_asked(served, slow, stream=stream)
        (late,) = [r for r in records if "Key #1" in r.attempts[0].name][:1]
        reason = "no first token in 60 ms" if stream else "no answer in 60 ms"
        assert late.attempts[0].reason == reason


async def until_slow_is_asked(served: Served, slow: FakeUpstream, *, stream: bool) -> None:
    for _ in range(20):
        await served.chat(stream=stream, headers={"X-Session-Id": str(_)})
        if slow.requests:
            return


@pytest.mark.proves("I-59")
@pytest.mark.parametrize("where", ["used", "feed"])
async def test_a_fault_of_the_gateway_breaks_the_connection(
    upstream: FakeUpstream, taken: Taken, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    upstream.default = Reply(delay_s=0.01)
    instance = make_instance(upstream)
    async with serving(instance) as served, connected(served) as (reader, writer):
        records = recording(served)
        writer.write(asking(stream=True))
        await reader.readuntil(b"\n\n")

        def fail(*args: object) -> None:
            raise RuntimeError("internal detail")

        monkeypatch.setattr(f"nexus_gateway.wire.passthrough.ChatPassthrough.{where}", fail)
        with contextlib.suppress(ConnectionResetError):
            rest = await asyncio.wait_for(reader.read(), 30)
            assert where == "used" or b"0\r\n\r\n" not in rest
        await until(lambda: records)
        assert instance.in_flight == served.gateway.drain.in_flight == 0
    assert [(r.status, r.outcome) for r in records] == [(500, "internal_error")]


async def test_a_shutdown_waits_for_a_caller_that_has_yet_to_take_its_answer() -> None:
    caller: Any = object.__new__(fast_connection.FastConnection)
    caller._loop = asyncio.get_running_loop()
    caller._fast, caller._ended, caller._paused, caller._ahead = None, None, True, b""
    caller._drain_waiter, caller._unsent, caller.transport = None, 0, object()
    caller._request_in_progress, caller._current_request = False, None
    caller._keepalive_handle = caller._task_handler = caller._waiter = None
    closed = []
    caller.transport = SimpleNamespace(close=lambda: closed.append(True))
    shutdown = asyncio.create_task(caller.shutdown(30))
    await asyncio.sleep(0.02)
    assert not closed
    caller.resume_writing()
    await shutdown
    assert closed
