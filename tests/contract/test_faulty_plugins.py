"""A plugin that is broken in any way is named with its distribution, and hurts no other."""

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
from nexus_gateway.routing.policies import POLICIES, Policy, choose
from nexus_gateway.routing.pool import Pool, build_pool
from nexus_gateway.testing.upstream import FakeUpstream
from nexus_gateway.wire.chunks import Answer
from nexus_gateway.wire.sse import Event

ORIGIN = "faulty (nexus-faulty 0.1)"
both = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
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
    """Make a pool of a faulty plugin's instance and a good one's."""
    env = {
        "FAULTY_KEY_1": "faulty-key-secret",
        "FAULTY_BASE_URL": upstream.base_url,
        "ACME_KEY_1": "acme-key-secret",
        "ACME_BASE_URL": upstream.base_url,
    }
    points = [point("faulty", cls, "nexus-faulty"), point("acme", Acme)]
    return build_pool(env, asyncio.get_running_loop().time, entry_points=points)


@pytest.mark.parametrize(
    ("found", "reason"),
    [(ImportError("gone"), "ImportError: gone"), (fit(title="Faulty", api_version=9), "version 9")],
)
async def test_one_that_cannot_be_loaded(
    upstream: FakeUpstream, found: type[Provider], reason: str
) -> None:
    pool = faulty(found, upstream)
    (problem,) = pool.problems
    assert str(problem).startswith("provider faulty (nexus-faulty 0.1, nexus_faulty:Cls): ")
    assert reason in str(problem)
    async with serving(*pool.instances) as served:
        assert (await served.chat())[0] == 200


@both
@pytest.mark.parametrize(
    "cls", [Prepares, Addresses, Authorizes, Unsendable, Encodes, Streams], ids=lambda c: c.__name__
)
async def test_one_that_fails_on_a_request(
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


async def test_one_that_fails_in_the_middle(
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


class Choosy(Acme):
    title = "Faulty"

    def prepare(self, chat: Mapping[str, Any]) -> Mapping[str, Any]:
        raise CannotServe("Only one answer at a time.", "n")


class ChoosyInside(InProcess):
    title = "Faulty"
    default_model = "m"
    needs_key = True

    async def generate(self, call: Call, answer: Answer) -> AsyncIterator[dict[str, Any]]:
        raise CannotServe("Only one answer at a time.", "n")
        yield answer.finish()


@both
@pytest.mark.parametrize("cls", [Choosy, ChoosyInside])
async def test_what_a_backend_lacks_is_the_callers_to_know(
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


class ChoosesNobody(Policy):
    def choose(self, candidates: Any, rng: Random) -> Any:
        return None


async def test_a_policy_of_anothers_is_taken_by_its_name(upstream: FakeUpstream) -> None:
    made, found = load(POLICIES, [point("last", Last), *POINTS])
    assert list(made) == ["smart", "fastest", "round-robin", "last"]
    assert found.problems == []
    pair = make_instance(upstream), make_instance(upstream, 2)
    async with serving(*pair, policy_by_name=made) as served:
        for _ in range(3):
            headers = (await served.chat(headers={"X-Routing-Mode": "last"}))[2]
            assert headers["X-Nexus-Provider"] == "Fake (Key #2)"
        status, text, _ = await served.chat(headers={"X-Routing-Mode": "first"})
    assert status == 400
    assert "smart, fastest, round-robin, last" in text


def ours() -> list[Any]:
    from importlib import metadata

    return list(metadata.entry_points(group=POLICIES.group))


POINTS = ours()


@pytest.mark.parametrize("cls", [Raises, ChoosesNobody])
def test_a_policy_that_fails_costs_nothing_but_its_choice(
    cls: type[Policy], caplog: pytest.LogCaptureFixture
) -> None:
    pair = [make_instance(), make_instance(number=2)]
    assert choose(cls(), pair, Random(1)) is pair[0]
    assert cls.__name__ in caplog.text


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (ImportError("gone"), "ImportError: gone"),
        (object, "not a subclass of nexus_gateway.routing.Policy"),
        (type("Old", (Last,), {"api_version": 9}), "version 9"),
        (type("Half", (Policy,), {}), "choose"),
    ],
)
def test_a_broken_policy_is_left_out(found: object, reason: str) -> None:
    made, told = load(POLICIES, [point("faulty", found, "nexus-faulty"), *POINTS])
    assert list(made) == ["smart", "fastest", "round-robin"]
    (problem,) = told.problems
    assert str(problem).startswith("policy faulty (nexus-faulty 0.1")
    assert reason in str(problem)
