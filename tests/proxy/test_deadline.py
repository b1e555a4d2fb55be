"""A caller's own time limit, and how much an outage multiplies the load."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from clock import FakeClock
from fakes import KEYS, Other, make_instance, serving

from nexus_gateway.routing.breaker import State
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream


def within(ms: int | str) -> dict[str, str]:
    return {"X-Request-Timeout-Ms": str(ms)}


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("stream", [True, False])
async def test_a_response_after_the_deadline_is_a_504(upstream: FakeUpstream, stream: bool) -> None:
    upstream.default = Reply(hang=True)
    instance = make_instance(upstream)
    async with serving(instance) as served:
        status, text, headers = await served.chat(stream=stream, headers=within(300))
        assert status == 504
        assert json.loads(text)["error"]["code"] == "deadline_exceeded"
        assert headers["x-should-retry"] == "false"
        assert await upstream.requests[0].gone(30)
        assert instance.in_flight == 0
        assert instance.health.success_rate() == 1  # no failure of the instance


@pytest.mark.usefixtures("each_way")
async def test_a_stream_that_exceeds_the_deadline_ends_with_an_error(
    upstream: FakeUpstream,
) -> None:
    upstream.default = Reply(text="word " * 500, delay_s=0.02)
    async with serving(make_instance(upstream)) as served:
        status, text, _ = await served.chat(headers=within(200))
        assert status == 200
        *_, last = [e for e in text.split("\n\n") if e]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
        assert await upstream.requests[0].gone(30)


async def test_the_deadline_bounds_all_attempts_together(upstream: FakeUpstream) -> None:
    upstream.script(Reply(status=500, head_delay_s=0.1))
    upstream.default = Reply(hang=True)
    instances = make_instance(upstream), make_instance(upstream, provider=Other, name="other")
    async with serving(*instances) as served:
        status, _, headers = await served.chat(headers=within(250))
        assert status in (503, 504)
        assert int(headers["X-Nexus-Attempts"]) <= 3


async def test_a_response_without_a_stream_may_use_all_of_the_deadline(
    upstream: FakeUpstream,
) -> None:
    """The gateway's own limit is different: it leaves half of the time for another instance."""
    upstream.default = Reply(head_delay_s=0.3)
    async with serving(make_instance(upstream), make_instance(upstream, 2)) as served:
        status, _, headers = await served.chat(stream=False, headers=within(500))
        assert (status, headers["X-Nexus-Attempts"]) == (200, "1")


@pytest.mark.parametrize(
    "value", ["0", "-1", "1.5", "soon", "", "9" * 30, "0" * 17 + "1" + "9" * 400]
)
async def test_a_deadline_must_be_a_number(upstream: FakeUpstream, value: str) -> None:
    async with serving(make_instance(upstream)) as served:
        status, text, _ = await served.chat(headers=within(value))
        assert status == 400
        assert json.loads(text)["error"]["param"] == "X-Request-Timeout-Ms"


@pytest.mark.proves("F39", "I-20")
async def test_an_outage_of_everything_does_not_multiply_the_load(upstream: FakeUpstream) -> None:
    """All instances fail, but no circuit stays open, so that only the budget limits retries."""
    clock = FakeClock()
    upstream.default = Reply(status=500)
    instances = [make_instance(upstream, n, clock) for n in (1, 2, 3)]
    async with serving(*instances, clock=clock) as served:
        sent = 0
        for _ in range(12):
            for instance in instances:  # as if each had a success once a second
                if instance.default.breaker.state() is not State.CLOSED:
                    instance.default.breaker.merge_remote((clock(), False, False))
            await asyncio.gather(*(served.chat() for _ in range(10)))
            sent += 10
            clock.advance(1)
        retries = upstream.hits() - sent
        assert served.gateway.scheduler.retries.denied
        assert retries <= 0.2 * sent + 2 * 10 + len(instances) * 12


async def test_a_retry_at_a_healthy_instance_is_always_allowed(
    upstream: FakeUpstream,
) -> None:
    upstream.defaults[KEYS[0]] = Reply(status=500)
    bad, good = make_instance(upstream), make_instance(upstream, 2)
    async with serving(bad, good) as served:
        for _ in range(16):
            bad.default.breaker.merge_remote(
                (time.monotonic(), False, False)
            )  # it never stays open
            response = await served.chat(stream=False, headers={"X-Routing-Mode": "round-robin"})
            assert response[0] == 200
        assert upstream.hits(KEYS[0]) == 16
