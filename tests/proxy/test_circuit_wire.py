"""Circuits, parks and toggles under load, over real sockets; the clock moves by hand."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest
from clock import FakeClock
from fakes import HELLO, KEYS, Served, make_instance, serving
from waiting import until

from nexus_gateway.routing.breaker import State
from nexus_gateway.routing.instance import Instance
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream
from nexus_gateway.upstream import client
from nexus_gateway.web.responder import Responder

Answer = tuple[int, str]


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """A client with no limit on connections."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session


def ask(
    session: aiohttp.ClientSession, gateway: Served, count: int, policy: str = "smart"
) -> list[asyncio.Task[Answer]]:
    async def post() -> Answer:
        url, headers = gateway.url + "/v1/chat/completions", {"X-Routing-Mode": policy}
        async with session.post(url, json=HELLO, headers=headers) as answer:
            return answer.status, await answer.text()

    return [asyncio.create_task(post()) for _ in range(count)]


def open_circuit(instance: Instance) -> None:
    for _ in range(3):
        instance.default.breaker.failure(instance.default.breaker.acquire())


async def last_unfinished(
    requests: list[asyncio.Task[Answer]], upstream: FakeUpstream, key: str
) -> asyncio.Task[Answer]:
    """Wait until one request is unfinished, the one that the key's upstream has, and return it."""
    await until(lambda: sum(task.done() for task in requests) >= len(requests) - 1)
    await until(lambda: upstream.hits(key))
    (unfinished,) = [task for task in requests if not task.done()]
    return unfinished


async def leave(probe: asyncio.Task[Answer], upstream: FakeUpstream, instance: Instance) -> None:
    """Cancel a probe's request, and wait until the gateway has released it."""
    probe.cancel()
    (received,) = [r for r in upstream.requests if r.key == instance.key.reveal()]
    assert await received.gone(30)
    await until(lambda: not instance.in_flight)


@pytest.fixture
def long_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow long connects: with so many requests in one process, its loop may be late."""
    monkeypatch.setattr(client, "_TIMEOUT", aiohttp.ClientTimeout(total=None, sock_connect=60))


@pytest.mark.unmeasured
@pytest.mark.usefixtures("long_connects")
@pytest.mark.proves("I-13", "F10")
@pytest.mark.parametrize(
    ("policy", "count"), [("smart", 200), ("fastest", 20), ("round-robin", 20)]
)
async def test_one_request_of_hundreds_probes_and_the_others_go_elsewhere(
    upstream: FakeUpstream, session: aiohttp.ClientSession, policy: str, count: int
) -> None:
    clock = FakeClock()
    shaky, sound = (make_instance(upstream, n, clock) for n in (1, 2))
    upstream.defaults[KEYS[0]] = Reply(hang=True)
    async with serving(shaky, sound, clock=clock, first_token_timeout_ms=60_000) as gateway:
        open_circuit(shaky)
        clock.advance(60)
        requests = ask(session, gateway, count, policy)
        probe = await last_unfinished(requests, upstream, KEYS[0])
        answers = [task.result() for task in requests if task is not probe]
        assert {(status, "[DONE]" in text) for status, text in answers} == {(200, True)}
        assert (upstream.hits(KEYS[0]), upstream.hits(KEYS[1])) == (1, count - 1)
        await leave(probe, upstream, shaky)
        assert shaky.default.breaker.state() is State.HALF_OPEN
        assert shaky.default.breaker.admits()


@pytest.mark.usefixtures("long_connects")
@pytest.mark.proves("I-13", "I-12", "F11", "F08")
async def test_without_another_instance_requests_fail_at_once_and_a_cancelled_probe_frees_its_place(
    upstream: FakeUpstream, session: aiohttp.ClientSession
) -> None:
    clock = FakeClock()
    instance = make_instance(upstream, clock=clock)
    upstream.default = Reply(hang=True)
    async with serving(instance, clock=clock, first_token_timeout_ms=60_000) as gateway:
        open_circuit(instance)
        clock.advance(60)
        requests = ask(session, gateway, 100)
        probe = await last_unfinished(requests, upstream, KEYS[0])
        assert {task.result()[0] for task in requests if task is not probe} == {503}
        assert upstream.hits() == 1
        await leave(probe, upstream, instance)
        assert instance.default.breaker.state() is State.HALF_OPEN
        upstream.default = Reply()
        assert (await gateway.chat())[0] == 200
        assert instance.default.breaker.state() is State.CLOSED


@pytest.mark.proves("I-13", "F09")
@pytest.mark.parametrize("reply", [Reply(hang=True), Reply(status=500), Reply(cut_after=1)])
async def test_a_probe_that_fails_or_hangs_opens_the_circuit_for_another_minute(
    upstream: FakeUpstream, reply: Reply
) -> None:
    clock = FakeClock()
    shaky, sound = (make_instance(upstream, n, clock) for n in (1, 2))
    upstream.defaults[KEYS[0]] = reply
    async with serving(shaky, sound, clock=clock, first_token_timeout_ms=200) as gateway:
        for round_number in (1, 2):
            open_circuit(shaky) if round_number == 1 else None
            clock.advance(60)
            turns = {"X-Routing-Mode": "round-robin"}
            statuses = [(await gateway.chat(headers=turns))[0] for _ in range(4)]
            assert statuses == [200] * 4
            assert upstream.hits(KEYS[0]) == round_number
            assert shaky.default.breaker.state() is State.OPEN
            assert shaky.default.breaker.ready_in_s() == 60


@pytest.mark.proves("F40", "I-50")
async def test_a_drain_waits_for_a_probe(upstream: FakeUpstream) -> None:
    clock = FakeClock()
    instance = make_instance(upstream, clock=clock)
    upstream.default = Reply(text="a b c", delay_s=0.1)
    async with serving(instance, clock=clock) as gateway:
        open_circuit(instance)
        clock.advance(60)
        probe = asyncio.create_task(gateway.chat())
        await until(lambda: upstream.open)
        gateway.gateway.drain.begin()
        status, text, headers = await gateway.chat()
        assert (status, headers["Connection"]) == (503, "close")
        assert "shutting_down" in text
        assert int(headers["Retry-After"]) >= 1
        assert (await probe)[1].endswith("[DONE]\n\n")
        assert instance.default.breaker.state() is State.CLOSED
        assert await gateway.gateway.drain.wait(1)


@pytest.mark.proves("I-01", "I-10", "F07")
async def test_a_failing_key_is_skipped_after_three_failures_and_its_siblings_serve(
    upstream: FakeUpstream,
) -> None:
    clock = FakeClock()
    bad, good = (make_instance(upstream, n, clock) for n in (1, 2))
    upstream.defaults[KEYS[0]] = Reply(status=500)
    async with serving(bad, good, clock=clock) as gateway:
        turns = {"X-Routing-Mode": "round-robin"}
        statuses = [(await gateway.chat(headers=turns))[0] for _ in range(12)]
    assert statuses == [200] * 12
    assert (upstream.hits(KEYS[0]), upstream.hits(KEYS[1])) == (3, 12)
    assert (bad.default.breaker.state(), good.default.breaker.state()) == (State.OPEN, State.CLOSED)


@pytest.mark.proves("I-15")
async def test_a_stream_is_counted_at_its_end(upstream: FakeUpstream) -> None:
    instance = make_instance(upstream)
    async with serving(instance, max_attempts=1) as gateway:
        for last, state in ((Reply(), State.CLOSED), (Reply(cut_after=3), State.OPEN)):
            upstream.script(Reply(status=500), Reply(status=500), last)
            for _ in range(3):
                await gateway.chat()
            assert instance.default.breaker.state() is state


@pytest.mark.proves("I-14")
async def test_streams_that_began_before_the_circuit_opened_do_not_change_it(
    upstream: FakeUpstream, session: aiohttp.ClientSession
) -> None:
    clock = FakeClock()
    instance = make_instance(upstream, clock=clock)
    late = {"delay_s": 0.3, "text": "a b"}
    upstream.script(*[Reply(**late)] * 4, *[Reply(**late, cut_after=1)] * 4)
    async with serving(instance, clock=clock, max_attempts=1) as gateway:
        running = ask(session, gateway, 8)
        await until(lambda: upstream.open >= 8)
        open_circuit(instance)
        clock.advance(20)
        answers = await asyncio.gather(*running)
        assert sum("[DONE]" in text for _, text in answers) == 4
        assert instance.default.breaker.state() is State.OPEN
        assert instance.default.breaker.ready_in_s() == 40
        assert instance.in_flight == 0


@pytest.mark.proves("I-06")
async def test_a_success_that_began_before_a_park_does_not_end_it(upstream: FakeUpstream) -> None:
    clock = FakeClock()
    instance = make_instance(upstream, clock=clock)
    limited = Reply(status=429, headers={"Retry-After": "7"})
    upstream.script(Reply(delay_s=0.1, text="a b"), *[limited] * 4)
    async with serving(instance, clock=clock) as gateway:
        early = asyncio.create_task(gateway.chat())
        await until(lambda: upstream.open)
        assert (await gateway.chat())[0] == 429
        assert (await early)[0] == 200
        assert instance.default.parked_for_s() == 7
        clock.advance(6.9)
        assert (await gateway.chat())[0] == 429
        assert upstream.hits() == 2
        for _ in range(3):
            clock.advance(7)
            await gateway.chat()
        assert upstream.hits() == 5
        assert instance.default.breaker.state() is State.CLOSED


@pytest.mark.proves("I-11", "F41")
@pytest.mark.parametrize("jump_s", [3600, -3600])
async def test_a_jump_of_the_wall_clock_changes_nothing(
    upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch, jump_s: int
) -> None:
    parked, shaky, sound = (make_instance(upstream, n) for n in (1, 2, 3))
    upstream.default = Reply(text="a b c d", delay_s=0.04)
    async with serving(parked, shaky, sound) as gateway:
        parked.default.park(30)
        open_circuit(shaky)
        running = asyncio.create_task(gateway.chat())
        await until(lambda: upstream.open)
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + jump_s)
        later = [await gateway.chat() for _ in range(2)]
        assert [status for status, *_ in [await running, *later]] == [200] * 3
        assert 20 < parked.default.parked_for_s() <= 30
        assert shaky.default.breaker.state() is State.OPEN
        assert 50 < shaky.default.breaker.ready_in_s() <= 60
        assert upstream.hits(KEYS[2]) == 3


@pytest.mark.proves("I-17", "F43")
async def test_rapid_toggles_cut_no_stream(
    upstream: FakeUpstream, session: aiohttp.ClientSession
) -> None:
    upstream.default = Reply(text="a b c", delay_s=0.1)
    instances = [make_instance(upstream, n) for n in (1, 2)]
    async with serving(*instances) as gateway:

        async def toggle(enabled: bool) -> int:
            body = {"name": instances[0].name, "enabled": enabled}
            return (await gateway.post("/v1/providers/toggle", body))[0]

        before = ask(session, gateway, 20, "round-robin")
        await until(lambda: upstream.open >= 20)
        assert await toggle(False) == 200
        hits = upstream.hits(KEYS[0])
        assert hits == 10
        during = ask(session, gateway, 10)
        responses = await asyncio.gather(*before, *during)
        assert upstream.hits(KEYS[0]) == hits
        toggles = [toggle(random.random() < 0.5) for _ in range(60)]
        responses += (await asyncio.gather(asyncio.gather(*ask(session, gateway, 30)), *toggles))[0]
        assert {(status, text[-8:]) for status, text in responses} == {(200, "[DONE]\n\n")}
        for enabled in (False, True, True):
            assert await toggle(enabled) == 200
            assert (await gateway.health())["providers"][0]["enabled"] is enabled
        assert [i.in_flight for i in instances] == [0, 0]
        assert {i.default.breaker.state() for i in instances} == {State.CLOSED}


ENDS = {
    "complete": Reply(),
    "refused": Reply(status=400),
    "bad key": Reply(status=401),
    "limited": Reply(status=429),
    "fails": Reply(status=500),
    "breaks": Reply(cut_after=2),
    "left before the head": Reply(hang=True),
    "left before the first content": Reply(hang_after=0),
    "left in the middle": Reply(hang_after=2),
    "left in a pause": Reply(status=500),
    "an internal error": Reply(),
}


@pytest.mark.proves("I-16")
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("end", ENDS)
async def test_no_outcome_leaves_an_attempt_in_flight(
    upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch, end: str, stream: bool
) -> None:
    upstream.default = ENDS[end]
    if not stream and ENDS[end].hang_after is not None:
        upstream.default = Reply(hang=True)  # a response without a stream has no middle
    instance = make_instance(upstream)

    async def fail(*args: object) -> None:
        raise RuntimeError("an internal error")

    if end == "an internal error":
        monkeypatch.setattr(Responder, "start" if stream else "full", fail)
    attempts = 6 if "pause" in end else 2
    async with serving(instance, max_attempts=attempts) as gateway:
        request_task = asyncio.create_task(gateway.chat(stream=stream))
        if end.startswith("left"):
            await until(lambda: instance.in_flight and upstream.requests)
            await asyncio.sleep(0.03)
            request_task.cancel()
        await asyncio.gather(request_task, return_exceptions=True)
        await until(lambda: not (instance.in_flight or gateway.gateway.drain.in_flight))
        tried = upstream.hits()
        await asyncio.sleep(0.05)
        assert upstream.hits() == tried
        assert instance.default.breaker.state() is State.CLOSED or end in (
            "fails",
            "left in a pause",
        )
