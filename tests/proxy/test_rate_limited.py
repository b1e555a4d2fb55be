"""Rate limits over the network: instances nearly out of quota, and requests that wait."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from clock import FakeClock
from fakes import KEYS, make_instance, serving

from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream

ROUND = {"X-Routing-Mode": "round-robin"}


def quota(left: int, limit: int = 100, reset: str = "60s") -> Reply:
    kind = "x-ratelimit-{}-requests"
    values = {"remaining": str(left), "limit": str(limit), "reset": reset}
    return Reply(headers={kind.format(word): value for word, value in values.items()})


@pytest.mark.usefixtures("each_way")
async def test_an_instance_without_quota_is_avoided_before_it_fails(upstream: FakeUpstream) -> None:
    clock = FakeClock()
    upstream.defaults[KEYS[0]] = quota(0)
    instances = [make_instance(upstream, n, clock) for n in (1, 2)]
    async with serving(*instances, clock=clock) as served:
        for _ in range(6):
            assert (await served.chat(headers=ROUND))[0] == 200
        assert (upstream.hits(KEYS[0]), upstream.hits(KEYS[1])) == (1, 5)
        assert [p["quotaLeft"] for p in (await served.health())["providers"]] == ["0.0%", None]
        clock.advance(60)
        assert (await served.chat(headers=ROUND))[0] == 200
        assert upstream.hits(KEYS[0]) == 2


async def test_an_instance_without_quota_is_used_if_there_is_no_other(
    upstream: FakeUpstream,
) -> None:
    upstream.default = quota(0)
    async with serving(make_instance(upstream)) as served:
        assert [(await served.chat())[0] for _ in range(3)] == [200] * 3


async def test_an_instance_with_little_quota_is_chosen_less(upstream: FakeUpstream) -> None:
    upstream.defaults[KEYS[0]] = quota(2)
    instances = [make_instance(upstream, n) for n in (1, 2)]
    async with serving(*instances, affinity=False) as served:
        served_by = Counter(
            [(await served.chat(stream=False))[2]["X-Nexus-Provider"] for _ in range(60)]
        )
    assert 1 <= served_by["Fake (Key #1)"] <= 20  # instead of 30: 2 % of its quota is left


def limited(wait_s: float) -> Reply:
    return Reply(status=429, headers={"Retry-After": str(wait_s)})


async def test_a_503_with_retry_after_parks_the_instance(upstream: FakeUpstream) -> None:
    clock = FakeClock()
    upstream.script(Reply(status=503, headers={"Retry-After": "7"}))
    instance = make_instance(upstream, clock=clock)
    async with serving(instance, clock=clock) as served:
        status, _, headers = await served.chat()
        assert (status, headers["Retry-After"]) == (503, "7")
        assert instance.default.park_reason() == "resting"
        assert instance.health.success_rate() == 0
        clock.advance(6.9)
        assert (await served.chat())[0] == 503
        assert upstream.hits() == 1
        clock.advance(0.1)
        assert (await served.chat())[0] == 200


def soon() -> asyncio.Timeout:
    """Fail after as long as the queue would wait, but not because of a slow machine."""
    return asyncio.timeout(30)


@pytest.mark.proves("F05")
async def test_without_a_queue_all_parked_is_a_429_at_once(upstream: FakeUpstream) -> None:
    upstream.default = limited(3)
    async with serving(make_instance(upstream), make_instance(upstream, 2)) as served:
        status, _, headers = await served.chat()
        assert (status, headers["Retry-After"]) == (429, "3")
        assert headers["x-should-retry"] == "true"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_request_waits_for_the_first_instance_to_return(
    upstream: FakeUpstream, stream: bool
) -> None:
    upstream.script(limited(0.2))
    async with serving(make_instance(upstream), queue_timeout_ms=2000) as served:
        status, _, headers = await served.chat(stream=stream)
        assert (status, headers["X-Nexus-Attempts"]) == (200, "2")


async def test_a_request_does_not_wait_for_an_instance_that_returns_too_late(
    upstream: FakeUpstream,
) -> None:
    upstream.default = limited(60)
    async with serving(make_instance(upstream), queue_timeout_ms=50_000) as served, soon():
        status, _, headers = await served.chat()
        assert (status, headers["Retry-After"]) == (429, "60")
        assert (await served.chat(headers={"X-Request-Timeout-Ms": "50"}))[0] == 429


@pytest.mark.proves("I-41")
async def test_the_queue_is_in_order_and_bounded(upstream: FakeUpstream) -> None:
    upstream.script(limited(0.3))
    refused: list[int] = []
    async with serving(make_instance(upstream), queue_timeout_ms=5000, queue_limit=4) as served:

        async def ask(number: int) -> None:
            body = {"messages": [{"role": "user", "content": str(number)}]}
            status, text, _ = await served.chat(body)
            if status != 200:
                assert "queue_full" in text
                refused.append(number)

        tasks = []
        for number in range(6):
            tasks.append(asyncio.create_task(ask(number)))
            await asyncio.sleep(0.03)
        await asyncio.gather(*tasks)
    assert refused == [4, 5]
    received_order = [received.body["messages"][0]["content"] for received in upstream.requests]
    assert received_order == ["0", "0", "1", "2", "3"]


async def test_a_caller_that_leaves_the_queue_frees_the_next_request(
    upstream: FakeUpstream,
) -> None:
    upstream.script(limited(0.3))
    async with serving(make_instance(upstream), queue_timeout_ms=5000) as served:
        first = asyncio.create_task(served.chat())
        await asyncio.sleep(0.1)
        second = asyncio.create_task(served.chat())
        await asyncio.sleep(0.05)
        first.cancel()
        assert (await second)[0] == 200
        assert upstream.hits() == 2


async def test_an_enabled_instance_serves_waiting_requests(upstream: FakeUpstream) -> None:
    instances = make_instance(upstream), make_instance(upstream, 2)
    upstream.defaults[KEYS[0]] = limited(40)
    async with serving(*instances, queue_timeout_ms=50_000) as served, soon():
        instances[1].disable()
        asking = asyncio.create_task(served.chat())
        await asyncio.sleep(0.1)
        instances[1].enable()
        assert (await asking)[2]["X-Nexus-Provider"] == "Fake (Key #2)"


@pytest.mark.parametrize(
    "failure", [Reply(status=404), limited(0)], ids=["does not know its model", "wait 0 s"]
)
async def test_an_available_instance_that_refused_is_not_waited_for(
    upstream: FakeUpstream, failure: Reply
) -> None:
    upstream.default = failure
    async with serving(make_instance(upstream), queue_timeout_ms=50_000) as served, soon():
        assert (await served.chat())[0] in (429, 503)
        assert upstream.hits() == 1


async def test_another_instance_is_waited_for_after_a_refusal(upstream: FakeUpstream) -> None:
    upstream.defaults[KEYS[0]] = Reply(status=404)
    instances = make_instance(upstream), make_instance(upstream, 2)
    async with serving(*instances, queue_timeout_ms=5000) as served:
        instances[1].default.park(0.25)
        assert (await served.chat())[2]["X-Nexus-Provider"] == "Fake (Key #2)"
        assert (upstream.hits(KEYS[0]), upstream.hits(KEYS[1])) == (1, 1)


async def test_a_denied_retry_does_not_block_the_queue(
    upstream: FakeUpstream,
) -> None:
    """It would retry a thousand times a second and block all other requests."""
    upstream.script(Reply(status=500))
    async with serving(make_instance(upstream), queue_timeout_ms=50_000) as served, soon():
        retries = served.gateway.scheduler.retries
        for _ in range(12):
            retries.retry()
        assert (await served.chat())[0] == 503
        assert retries.denied <= 2
        assert (await served.chat())[0] == 200
