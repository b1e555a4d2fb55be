"""A plugin that is broken in any way is reported with its distribution and affects no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from random import Random
from typing import Any

import pytest
from fakes import HELLO, make_instance, serving
from plugin_points import Acme, fit, point

from nexus_gateway.discovery import load
from nexus_gateway.provider import (
    Account,
    Call,
    CannotServe,
    HttpRequest,
    InProcess,
    Provider,
    Translator,
    json_request,
)
from nexus_gateway.routing.affinity import RoutingView
from nexus_gateway.routing.policies import POLICIES, Policy, choose
from nexus_gateway.routing.pool import Pool, build_pool
from nexus_gateway.testing.upstream import FakeUpstream
from nexus_gateway.wire.chunks import Answer
from nexus_gateway.wire.sse import Event

ORIGIN = "faulty (nexus-faulty 0.1)"
both = pytest.mark.parametrize("stream", [True, False], ids=["stream", "no stream"])
FIRST = {"X-Routing-Mode": "round-robin"}


class Prepares(Acme):
    title = "Faulty"

    def prepare(self, chat: Mapping[str, Any]) -> Mapping[str, Any]:
        raise RuntimeError("a bug")


class Addresses(Acme):
    title = "Faulty"

    def url(self, account: Account, endpoint: str, model: str) -> str:
        raise RuntimeError("a bug")


class Authorizes(Acme):
    title = "Faulty"

    def authorize(self, key: Any) -> dict[str, str]:
        raise RuntimeError("a bug")


class Unsendable(Acme):
    title = "Faulty"

    def prepare(self, chat: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**chat, "odd": object()}


class Encodes(Translator):
    title = "Faulty"
    base_url = "https://acme.example"
    default_model = "acme-1"

    def encode(self, call: Call) -> HttpRequest:
        raise RuntimeError("a bug")

    async def stream(
        self, events: AsyncIterator[Event], answer: Answer
    ) -> AsyncIterator[dict[str, Any]]:
        yield answer.finish()


class Streams(Encodes):
    def encode(self, call: Call) -> HttpRequest:
        return json_request(call, "/chat/completions", {"stream": True}, {})

    async def stream(
        self, events: AsyncIterator[Event], answer: Answer
    ) -> AsyncIterator[dict[str, Any]]:
        raise RuntimeError("a bug")
        yield answer.finish()


class BreaksLate(Streams):
    async def stream(
        self, events: AsyncIterator[Event], answer: Answer
    ) -> AsyncIterator[dict[str, Any]]:
        yield answer.text("so far")
        yield answer.text(" so good")
        raise RuntimeError("a bug")


def faulty(cls: type[Provider], upstream: FakeUpstream) -> Pool:
    """Return a pool with an instance of a faulty plugin and one of a good one."""
    env = {
        "FAULTY_KEY_1": "faulty-key-secret",
        "FAULTY_BASE_URL": upstream.base_url,
        "ACME_KEY_1": "acme-key-secret",
        "ACME_BASE_URL": upstream.base_url,
    }
    points = [point("faulty", cls, "nexus-faulty"), point("acme", Acme)]
    return build_pool(env, asyncio.get_running_loop().time, entry_points=points)


@pytest.mark.parametrize(
    ("plugin", "reason"),
    [(ImportError("gone"), "ImportError: gone"), (fit(title="Faulty", api_version=9), "version 9")],
)
async def test_a_plugin_that_cannot_be_loaded_is_reported(
    upstream: FakeUpstream, plugin: type[Provider], reason: str
) -> None:
    pool = faulty(plugin, upstream)
    (problem,) = pool.problems
    assert str(problem).startswith("provider faulty (nexus-faulty 0.1, nexus_faulty:Cls): ")
    assert reason in str(problem)
    async with serving(*pool.instances) as served:
        assert (await served.chat())[0] == 200


@both
@pytest.mark.parametrize(
    "cls", [Prepares, Addresses, Authorizes, Unsendable, Encodes, Streams], ids=lambda c: c.__name__
)
async def test_a_plugin_that_fails_on_a_request_is_logged_and_fails_over(
    upstream: FakeUpstream,
    cls: type[Provider],
    stream: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(*faulty(cls, upstream).instances) as served:
        for _ in range(2):
            status, text, headers = await served.chat(stream=stream, headers=FIRST)
            assert (status, headers["X-Nexus-Provider"]) == (200, "Acme (Key #1)")
            assert "bug" not in text
    assert f"the plugin {ORIGIN} failed" in caplog.text
    assert "secret" not in caplog.text


async def test_a_plugin_that_fails_in_its_stream_ends_it_with_an_error(
    upstream: FakeUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(*faulty(BreaksLate, upstream).instances) as served:
        status, text, _ = await served.chat({**HELLO, "model": "faulty", "stream": True})
        assert status == 200
        assert "so far" in text
        assert '"error"' in text
        assert "bug" not in text
        assert "[DONE]" not in text
        assert (await served.chat({**HELLO, "model": "acme"}))[0] == 200
    assert f"the plugin {ORIGIN} failed in its stream" in caplog.text


class Selective(Acme):
    title = "Faulty"

    def prepare(self, chat: Mapping[str, Any]) -> Mapping[str, Any]:
        raise CannotServe("Only one answer at a time.", "n")


class SelectiveInProcess(InProcess):
    title = "Faulty"
    default_model = "m"
    needs_key = True

    async def generate(self, call: Call, answer: Answer) -> AsyncIterator[dict[str, Any]]:
        raise CannotServe("Only one answer at a time.", "n")
        yield answer.finish()


@both
@pytest.mark.parametrize("cls", [Selective, SelectiveInProcess])
async def test_a_feature_that_a_backend_lacks_is_an_error_for_the_caller(
    upstream: FakeUpstream, cls: type[Provider], stream: bool
) -> None:
    pool = faulty(cls, upstream)
    async with serving(*pool.instances) as served:
        status, text, _ = await served.chat({**HELLO, "model": "faulty", "stream": stream})
    assert status == 400
    assert '"Only one answer at a time."' in text
    assert '"param": "n"' in text
    assert upstream.hits() == 0
    assert pool.instances[0].health.success_rate() == 1.0


class Last(Policy):
    def choose(self, candidates: Any, rng: Random) -> Any:
        return candidates[-1]


class Raises(Policy):
    def choose(self, candidates: Any, rng: Random) -> Any:
        raise RuntimeError("a bug")


class ChoosesNothing(Policy):
    def choose(self, candidates: Any, rng: Random) -> Any:
        return None


async def test_a_policy_of_another_distribution_is_chosen_by_its_name(
    upstream: FakeUpstream,
) -> None:
    policies, discovery = load(POLICIES, [point("last", Last), *POINTS])
    assert list(policies) == ["smart", "fastest", "round-robin", "last"]
    assert discovery.problems == []
    pair = make_instance(upstream), make_instance(upstream, 2)
    async with serving(*pair, policy_by_name=policies) as served:
        for _ in range(3):
            headers = (await served.chat(headers={"X-Routing-Mode": "last"}))[2]
            assert headers["X-Nexus-Provider"] == "Fake (Key #2)"
        status, text, _ = await served.chat(headers={"X-Routing-Mode": "first"})
    assert status == 400
    assert "smart, fastest, round-robin, last" in text


def built_in_points() -> list[Any]:
    from importlib import metadata

    return list(metadata.entry_points(group=POLICIES.group))


POINTS = built_in_points()


@pytest.mark.parametrize("cls", [Raises, ChoosesNothing])
def test_a_policy_that_fails_is_replaced_by_a_default_choice(
    cls: type[Policy], caplog: pytest.LogCaptureFixture
) -> None:
    pair = [make_instance(), make_instance(number=2)]
    assert choose(cls(), RoutingView(), pair, Random(1)) is pair[0]
    assert cls.__name__ in caplog.text


@pytest.mark.parametrize(
    ("plugin", "reason"),
    [
        (ImportError("gone"), "ImportError: gone"),
        (object, "not a subclass of nexus_gateway.routing.Policy"),
        (type("Old", (Last,), {"api_version": 9}), "version 9"),
        (type("Half", (Policy,), {}), "choose"),
    ],
)
def test_a_broken_policy_is_left_out(plugin: object, reason: str) -> None:
    policies, discovery = load(POLICIES, [point("faulty", plugin, "nexus-faulty"), *POINTS])
    assert list(policies) == ["smart", "fastest", "round-robin"]
    (problem,) = discovery.problems
    assert str(problem).startswith("policy faulty (nexus-faulty 0.1")
    assert reason in str(problem)
