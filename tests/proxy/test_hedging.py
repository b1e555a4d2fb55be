"""A second instance is asked when the first token is late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fakes import KEYS, Served, make_instance, serving

from nexus_gateway.errors import Overloaded
from nexus_gateway.proxy.context import RequestContext, RequestOptions
from nexus_gateway.proxy.hedging import HedgedAttempt
from nexus_gateway.proxy.relay import Delivery
from nexus_gateway.routing.attempts import Attempt, AttemptHistory
from nexus_gateway.routing.instance import Deployment
from nexus_gateway.routing.scheduler import RoutingTarget
from nexus_gateway.testing.conformance.conversations import read_stream
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream
from nexus_gateway.upstream.attempt import Upstream
from nexus_gateway.upstream.streams import AnswerStream

HEDGED = {"X-Nexus-Hedge": "true", "X-Routing-Mode": "round-robin"}
SLOW = Reply(head_delay_s=5)


@pytest.fixture
async def served(upstream: FakeUpstream) -> AsyncIterator[Served]:
    """A gateway whose instances have a history of fast responses, and with some hedges saved."""
    instances = make_instance(upstream), make_instance(upstream, 2)
    async with serving(*instances) as gateway:
        for instance in instances:
            for _ in range(20):
                instance.health.observe_first_token(30)
        for _ in range(60):
            gateway.gateway.scheduler.hedges.request()
        yield gateway


@pytest.mark.usefixtures("each_way")
async def test_the_first_response_wins_and_the_other_is_closed(
    upstream: FakeUpstream, served: Served
) -> None:
    upstream.defaults[KEYS[0]] = SLOW
    status, text, headers = await served.chat(headers=HEDGED)
    assert (status, read_stream(text).text) == (200, Reply().text)
    assert headers["X-Nexus-Provider"] == "Fake (Key #2)"
    assert headers["X-Nexus-Attempts"] == "2"
    assert await upstream.requests[0].gone(30)
    loser, winner = served.instances
    assert (loser.in_flight, winner.in_flight) == (0, 0)
    assert loser.health.success_rate() == 1  # slow is no failure
    assert loser.health.latency_ms() >= 30


async def test_the_first_attempt_may_win_after_all(upstream: FakeUpstream, served: Served) -> None:
    upstream.defaults[KEYS[0]] = Reply(head_delay_s=0.1)
    upstream.defaults[KEYS[1]] = SLOW
    _, text, headers = await served.chat(headers=HEDGED)
    assert read_stream(text).text == Reply().text
    assert headers["X-Nexus-Provider"] == "Fake (Key #1)"
    assert await upstream.requests[1].gone(30)


async def test_a_fast_response_is_not_hedged(upstream: FakeUpstream, served: Served) -> None:
    for instance in served.instances:
        for _ in range(64):
            instance.health.observe_first_token(3000)
    assert (await served.chat(headers=HEDGED))[0] == 200
    assert upstream.hits() == 1


@pytest.mark.parametrize("failure", [Reply(status=500), Reply(reset=True)])
async def test_a_failed_hedge_does_not_affect_the_first_attempt(
    upstream: FakeUpstream, served: Served, failure: Reply
) -> None:
    upstream.defaults[KEYS[0]] = Reply(head_delay_s=0.15)
    upstream.defaults[KEYS[1]] = failure
    _, text, headers = await served.chat(headers=HEDGED)
    assert read_stream(text).text == Reply().text
    assert headers["X-Nexus-Provider"] == "Fake (Key #1)"
    assert served.instances[1].health.success_rate() == 0


async def test_a_lack_of_resources_for_a_hedge_does_not_affect_the_first_attempt(
    upstream: FakeUpstream, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a file descriptor: a lack that the first attempt does not notice."""
    upstream.defaults[KEYS[0]] = Reply(head_delay_s=0.15)
    plain = Upstream.stream

    async def stream(
        self: Upstream, deployment: Deployment, *more: Any, **named: Any
    ) -> AnswerStream:
        if deployment.instance is served.instances[1]:
            raise Overloaded
        return await plain(self, deployment, *more, **named)

    monkeypatch.setattr(Upstream, "stream", stream)
    status, text, headers = await served.chat(headers=HEDGED)
    assert (status, read_stream(text).text) == (200, Reply().text)
    assert headers["X-Nexus-Provider"] == "Fake (Key #1)"
    assert [i.in_flight for i in served.instances] == [0, 0]
    assert served.instances[1].health.success_rate() != 0


class StubResponse:
    """A response that records whether it was closed."""

    closed = False

    async def close(self) -> None:
        self.closed = True
        await asyncio.sleep(0)  # as a real one does: the caller may leave in this moment


async def test_a_caller_that_leaves_as_both_respond_leaves_no_response_open(served: Served) -> None:
    gateway, responses = served.gateway, [StubResponse(), StubResponse()]
    target, scheduler = RoutingTarget(tuple(i.default for i in served.instances)), gateway.scheduler
    both_open, remaining = asyncio.Event(), iter(responses)

    async def open(delivery: Delivery, attempt: Attempt) -> Any:
        response = next(remaining)
        await both_open.wait()
        return response

    history = AttemptHistory()
    context = RequestContext("chat", "", scheduler.clock, 0.0, history)
    nothing: Any = None
    delivery = Delivery(context, nothing, target, RequestOptions("smart"), nothing, 0.0, 0.0)
    attempt = scheduler.attempt(target, "smart", history)
    race = HedgedAttempt(delivery, scheduler, open, lambda *_: None, (1000, 6))
    running = asyncio.create_task(race.run(attempt))
    while len(race._running) < 2:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    both_open.set()
    while race._running:  # noqa: ASYNC110 - until the loser is being closed
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert [response.closed for response in responses] == [True, True]
    assert [i.in_flight for i in served.instances] == [0, 0]


async def test_if_both_fail_the_next_attempt_follows(
    upstream: FakeUpstream, served: Served
) -> None:
    upstream.script(Reply(status=500, head_delay_s=0.1), key=KEYS[0])
    upstream.script(Reply(status=500, head_delay_s=0.1), key=KEYS[1])
    status, _, headers = await served.chat(headers=HEDGED)
    assert (status, headers["X-Nexus-Attempts"]) == (200, "3")


async def test_a_refusal_ends_both(upstream: FakeUpstream, served: Served) -> None:
    upstream.defaults[KEYS[0]] = SLOW
    upstream.defaults[KEYS[1]] = Reply(status=400)
    assert (await served.chat(headers=HEDGED))[0] == 400
    assert await upstream.requests[0].gone(30)
    assert [i.in_flight for i in served.instances] == [0, 0]


async def test_a_caller_that_leaves_ends_both(upstream: FakeUpstream, served: Served) -> None:
    upstream.default = SLOW
    asking = asyncio.create_task(served.chat(headers=HEDGED))
    while upstream.hits() < 2:  # noqa: ASYNC110 - there is no event for it
        await asyncio.sleep(0.01)
    before = [i.health.latency_ms() for i in served.instances]
    asking.cancel()
    assert await upstream.requests[0].gone(30)
    assert await upstream.requests[1].gone(30)
    assert [i.in_flight for i in served.instances] == [0, 0]
    assert [i.health.latency_ms() for i in served.instances] == before


async def test_at_most_one_request_in_twenty_is_hedged(
    upstream: FakeUpstream, served: Served
) -> None:
    upstream.default = Reply(head_delay_s=0.06)
    while served.gateway.scheduler.hedges.take():
        pass
    bodies = [served.chat(headers=HEDGED) for _ in range(60)]
    assert {answer[0] for answer in await asyncio.gather(*bodies)} == {200}
    assert 60 < upstream.hits() <= 63


async def test_a_request_is_hedged_only_if_requested(
    upstream: FakeUpstream, served: Served
) -> None:
    upstream.defaults[KEYS[0]] = Reply(head_delay_s=0.15)
    assert (await served.chat(headers={"X-Routing-Mode": "round-robin"}))[0] == 200
    assert upstream.hits() == 1
    status, text, _ = await served.chat(headers={"X-Nexus-Hedge": "maybe"})
    assert status == 400
    assert "X-Nexus-Hedge" in text


async def test_a_setting_hedges_all_requests(upstream: FakeUpstream) -> None:
    instances = make_instance(upstream), make_instance(upstream, 2)
    upstream.defaults[KEYS[0]] = SLOW
    async with serving(*instances, hedge=True) as served:
        for _ in range(20):
            instances[0].health.observe_first_token(30)
            served.gateway.scheduler.hedges.request()
        assert (await served.chat(headers={"X-Routing-Mode": "round-robin"}))[0] == 200
        upstream.defaults.clear()
        assert (await served.chat(headers={"X-Nexus-Hedge": "false"}))[0] == 200
