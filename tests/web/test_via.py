"""A request that comes back to the gateway is recognised by its `Via`, and goes round once."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fakes import Fake, Served, make_instance, serving

from nexus_gateway.provider import Account
from nexus_gateway.server.channel import WorkerSpec
from nexus_gateway.testing.upstream import FakeUpstream

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "Hello!"}]}
# More than the direct path takes.
LARGE = {"messages": [{"role": "user", "content": "x" * 600_000}]}


class Everything(Fake):
    endpoints = {**Fake.endpoints, "messages": "/messages", "embeddings": "/embeddings"}


def lead(gateway: Served, to: Served) -> None:
    """Give the gateway's instance the address of another gateway, or its own."""
    (instance,) = gateway.instances
    instance.account = Account(instance.key, f"{to.url}/v1")


def asked(gateway: Served) -> int:
    """Return how many requests the gateway's instance has been sent."""
    return sum(instance.total_requests for instance in gateway.instances)


def via(upstream: FakeUpstream) -> str:
    return upstream.requests[-1].headers["Via"]


@pytest.mark.proves("F61")
@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {**HELLO, "stream": True}),
        (CHAT, HELLO),
        (CHAT, LARGE),
        ("/v1/messages", {**HELLO, "max_tokens": 9}),
        ("/v1/embeddings", {"model": "fake-large", "input": "Hello!"}),
    ],
)
async def test_a_gateway_that_is_its_own_upstream_is_asked_once(
    path: str, body: dict[str, Any]
) -> None:
    async with serving(make_instance(provider=Everything)) as gateway:
        lead(gateway, to=gateway)
        status, text, headers = await gateway.post(path, body)

        assert (status, headers["x-should-retry"]) == (508, "false")
        assert "NAME_BASE_URL" in json.loads(text)["error"]["message"]
        assert asked(gateway) == 1
        assert gateway.instances[0].is_available


async def test_a_loop_through_another_gateway_ends_where_it_began() -> None:
    async with serving(make_instance()) as one, serving(make_instance()) as other:
        lead(one, to=other)
        lead(other, to=one)
        status, text, _ = await one.chat()

        assert (status, json.loads(text)["error"]["code"]) == (508, "loop_detected")
        assert (asked(one), asked(other)) == (1, 1)


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("body", [HELLO, LARGE], ids=["small", "large"])
async def test_two_gateways_in_a_row_name_themselves_in_order(
    upstream: FakeUpstream, body: dict[str, Any]
) -> None:
    async with serving(make_instance()) as first, serving(make_instance(upstream)) as last:
        lead(first, to=last)
        status, _, _ = await first.chat({**body, "stream": True}, headers={"Via": "1.1 edge"})

        assert status == 200
        assert via(upstream) == f"1.1 edge, {first.gateway.client.via}, {last.gateway.client.via}"


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("chain", ["", "1.1 caf\xe9", "1.1 a, " * 500])
async def test_what_no_header_may_contain_is_not_passed_on(
    upstream: FakeUpstream, chain: str
) -> None:
    async with serving(make_instance(upstream)) as gateway:
        status, _, _ = await gateway.chat(headers={"Via": chain})

        assert (status, via(upstream)) == (200, gateway.gateway.client.via)


def test_the_workers_of_a_gateway_have_one_name() -> None:
    one, same = (WorkerSpec(slot, 3, [], "::1", 1, "ab" * 16) for slot in (0, 1))
    other = WorkerSpec(0, 3, [], "::1", 1, "cd" * 16)

    assert one.pseudonym == same.pseudonym != other.pseudonym
    assert "ab" * 4 not in one.pseudonym
