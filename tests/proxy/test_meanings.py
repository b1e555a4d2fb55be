"""What an upstream's error means, and who is asked next: read before the status, over a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from answers import assert_complete
from clock import FakeClock
from fakes import HELLO, KEYS, Fake, Other, make_instance, serving

from nexus_gateway.provider import Model
from nexus_gateway.routing.instance import Instance
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream
from nexus_gateway.testing.wire import Received

CYCLE = {"X-Routing-Mode": "round-robin"}
PAGE = Reply(status=403, body=b"<html><h1>Blocked</h1></html>", content_type="text/html")


def error(status: int, message: str = "", **more: Any) -> Reply:
    return Reply(status=status, error={"message": message, **more})


def keys(upstream: FakeUpstream, count: int, **more: Any) -> list[Instance]:
    """Return instances of one provider, each with a key of its own."""
    return [make_instance(upstream, n, **more) for n in range(1, count + 1)]


def two_providers(upstream: FakeUpstream, **more: Any) -> list[Instance]:
    second = make_instance(upstream, 2, provider=Other, name="other", **more)
    return [make_instance(upstream, **more), second]


def of(key: str, reply: Reply) -> Callable[[Received], Reply | None]:
    return lambda received: reply if received.key == key else None


TOO_LARGE = "Request too large for model `x` on tokens per minute (TPM): Limit 6000, Requested 7343"
FEWER = "This request requires more credits, or fewer max_tokens. You requested up to 64000 tokens"
NOT_THIS_TIME = {
    "too large for the key": error(413, TOO_LARGE, type="tokens", code="rate_limit_exceeded"),
    "too large, as a 429": error(429, "Request too large for gpt-x: Limit 10000, Requested 12000"),
    "too large by its code": error(413, "No.", type="tokens", code="rate_limit_exceeded"),
    "malformed tool call": error(400, "Failed to call a function.", code="tool_use_failed"),
    "malformed JSON": error(400, "Failed to generate JSON.", code="json_validate_failed"),
    "more than the credit": error(402, FEWER, code=402),
    "not for this key": error(403, "No access to model `m`", code="model_not_found"),
    "blocked for the organization": error(403, "Blocked.", code="model_permission_blocked_org"),
    "unverified": error(403, "Your organization must be verified to use the model `m`."),
    "no such model or no access": error(404, "The model `m` does not exist or you do not have it."),
}


@pytest.mark.proves("F50")
@pytest.mark.parametrize("reply", NOT_THIS_TIME.values(), ids=NOT_THIS_TIME)
@pytest.mark.usefixtures("each_way")
async def test_a_refusal_of_this_request_by_one_key_is_answered_by_another(
    upstream: FakeUpstream, reply: Reply
) -> None:
    upstream.defaults[KEYS[0]] = reply
    pair = keys(upstream, 2)
    body = {**HELLO, "model": "fake/m", "stream": True}
    async with serving(*pair) as served:
        for _ in range(2):
            assert_complete(await served.chat(body, headers=CYCLE))
        assert not pair[0].bad_key_until_s
        assert pair[0].default.is_available, "the key stays good for other models and sizes"
        upstream.default = reply
        upstream.defaults.clear()
        status, text, _ = await served.chat({**body, "model": "fake/other"})
    assert reply.error is not None
    assert (status, json.loads(text)["error"]["message"]) == (reply.status, reply.error["message"])


BAD_KEYS = {
    "organization restricted": error(400, "Restricted.", code="organization_restricted"),
    "wrong key": error(400, "Incorrect API key provided: xa***. Obtain one at …"),
    "a list": Reply(
        status=400,
        body=b'[{"error": {"code": 400, "status": "FAILED_PRECONDITION", '
        b'"message": "User location is not supported for the API use."}}]',
    ),
    "invalid": error(401, "No.", code="invalid_api_key"),
}


@pytest.mark.proves("F51")
@pytest.mark.parametrize("reply", BAD_KEYS.values(), ids=BAD_KEYS)
async def test_a_refused_key_is_parked_whatever_its_status(
    upstream: FakeUpstream, reply: Reply
) -> None:
    upstream.defaults[KEYS[0]] = reply
    pair = keys(upstream, 2)
    async with serving(*pair) as served:
        for _ in range(4):
            assert_complete(await served.chat(headers=CYCLE))
        assert upstream.hits(KEYS[0]) == 1
        first = (await served.health())["providers"][0]
    assert (first["parkReason"], first["parkedForMs"] > 500_000) == ("bad_key", True)
    assert first["lastReason"]


GONE = {
    "decommissioned": error(400, "The model `m` has been decommissioned.", code="x"),
    "its code": error(400, "Gone.", code="model_decommissioned"),
    "not exist": error(400, "Model Not Exist", type="invalid_request_error"),
    "not a valid id": error(400, "a/m is not a valid model ID", code=400),
    "not found": error(404, "models/m is not found for API version v1main"),
    "a bare 404": Reply(status=404),
}


@pytest.mark.proves("F52")
@pytest.mark.parametrize("reply", GONE.values(), ids=GONE)
async def test_a_retired_model_that_the_gateway_chose_costs_no_request(
    upstream: FakeUpstream, reply: Reply, caplog: pytest.LogCaptureFixture
) -> None:
    upstream.defaults[KEYS[0]] = reply
    async with serving(*two_providers(upstream), affinity=False) as served:
        for n in range(60):
            assert_complete(await served.chat(stream=bool(n % 2)), stream=bool(n % 2))
        health = await served.health()
    assert upstream.hits(KEYS[0]) <= 2
    first = health["providers"][0]
    assert (health["status"], first["parkReason"]) == ("degraded", "unknown_model")
    assert first["lastReason"]
    assert first["models"][0]["parkReason"] == "unknown_model"
    assert caplog.text.count("check FAKE_MODEL") == 1


class Successors(Fake):
    default_model = "old"
    successors = ("older-still", "new")
    models = (Model("old"), Model("new"))


@pytest.mark.proves("F52")
async def test_a_successor_answers_for_a_default_model_that_is_gone(upstream: FakeUpstream) -> None:
    upstream.choose = lambda received: None if received.body["model"] == "new" else GONE["its code"]
    instance = make_instance(upstream, provider=Successors)
    async with serving(instance) as served:
        for _ in range(5):
            assert_complete(await served.chat())
        health = await served.health()
    assert [r.body["model"] for r in upstream.requests] == ["old", "older-still", *["new"] * 5]
    assert (health["status"], health["providers"][0]["model"]) == ("degraded", "new")


async def test_a_model_that_the_operator_chose_has_no_successor(upstream: FakeUpstream) -> None:
    upstream.default = GONE["its code"]
    async with serving(make_instance(upstream, provider=Successors, model="mine")) as served:
        for _ in range(2):  # it is tried again, as there is nothing else to try
            assert (await served.chat())[0] == 503
    assert {r.body["model"] for r in upstream.requests} == {"mine"}


LIMITS = {
    "context": error(400, "This model's maximum context length is 8192 tokens.", code="x"),
    "its code": error(400, "Too long.", code="context_length_exceeded"),
    "max_tokens": error(400, "`max_tokens` must be less than or equal to `8192`"),
    "logprobs": error(400, "`logprobs` is not supported with this model"),
    "tools": error(400, "m does not support tools"),
    "anthropic's": error(400, "prompt is too long: 210000 tokens > 200000 maximum"),
    "in a list": Reply(body=b'[{"error":{"code":400,"message":"maximum context length is 8"}}]'),
    "in a 200": Reply(body=b'{"error":{"code":400,"message":"maximum context length is 8192"}}'),
}


@pytest.mark.proves("F53")
@pytest.mark.parametrize("reply", LIMITS.values(), ids=LIMITS)
async def test_a_limit_of_one_backend_is_left_to_another_provider(
    upstream: FakeUpstream, reply: Reply
) -> None:
    upstream.defaults |= {KEYS[0]: reply, KEYS[1]: reply}
    other = make_instance(upstream, 3, provider=Other, name="other")
    pair = keys(upstream, 2)
    async with serving(*pair, other) as served:
        for _ in range(3):
            assert_complete(await served.chat(stream=False, headers=CYCLE), stream=False)
        assert upstream.hits(KEYS[0]) + upstream.hits(KEYS[1]) <= 3, "one request for a provider"
        before = upstream.hits()
        upstream.default = reply
        status, text, _ = await served.chat(stream=False)
        assert (status, upstream.hits() - before) == (400, 2)
        assert json.loads(text)["error"]["message"] != ""
        assert all(instance.is_available for instance in (*pair, other))


class Small(Other):
    default_model = "small"
    models = (Model("small", context=1000),)


class Large(Other):
    default_model = "large"
    models = (Model("large", context=1_000_000),)


async def test_after_a_context_limit_a_larger_window_comes_first(upstream: FakeUpstream) -> None:
    fake = make_instance(upstream)
    small = make_instance(upstream, 2, provider=Small, name="small")
    large = make_instance(upstream, 3, provider=Large, name="large")
    upstream.defaults |= {KEYS[0]: LIMITS["its code"], KEYS[1]: LIMITS["its code"]}
    async with serving(fake, small, large) as served:
        for _ in range(6):
            answer = await served.chat(headers=CYCLE)
            assert_complete(answer)
            assert answer[2]["X-Nexus-Provider"] == large.name
    assert upstream.hits() <= 6 * 2


@pytest.mark.proves("F03", "I-02")
@pytest.mark.parametrize("status", [400, 422])
async def test_a_fault_of_the_request_is_asked_once(upstream: FakeUpstream, status: int) -> None:
    upstream.default = error(status, "messages[0].content must be a string", code="invalid")
    pair = two_providers(upstream)
    async with serving(*pair) as served:
        answered, text, _ = await served.chat()
    assert (answered, upstream.hits()) == (status, 1)
    assert json.loads(text)["error"]["code"] == "invalid"
    assert [i.health.is_judged for i in pair] == [False, False]


# One request whose content makes any key refuse it, and what the caller gets.
POISON = {
    "a firewall's page": (PAGE, 403),
    "fewer tokens": (error(402, FEWER, code=402), 402),
    "unverified": (error(403, "Your organization must be verified to use the model `m`."), 403),
    "too large": (
        Reply(
            status=429,
            error={"message": "Request too large for m"},
            headers={"Retry-After": "600"},
        ),
        429,
    ),
    "forbidden": (error(403, "Forbidden"), 403),
    "payment": (error(402, "Payment required"), 402),
    "broken": (Reply(status=500), 503),
}


@pytest.mark.proves("F54")
@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize("count", [1, 2, 5])
async def test_one_callers_request_takes_no_key_away(
    upstream: FakeUpstream, poison: str, count: int
) -> None:
    reply, expected = POISON[poison]
    upstream.choose = lambda received: reply if b"poison" in received.raw else None
    clock = FakeClock()
    pool = [make_instance(upstream, n, clock, key=None) for n in (1, 2, 3)][:count]
    body = {"messages": [{"role": "user", "content": "poison"}], "stream": True}
    async with serving(*pool, clock=clock, max_attempts=2) as served:
        for _ in range(3):
            status, _, _ = await served.chat(body)
            assert status in ((expected, 503) if count == 1 else (expected,))
            for _ in range(10):
                assert_complete(await served.chat())
    assert count == 1 or all(instance.is_available for instance in pool)


async def test_a_refusal_of_unknown_reason_by_a_second_key_is_the_requests(
    upstream: FakeUpstream,
) -> None:
    upstream.default = PAGE
    pool = keys(upstream, 3)
    async with serving(*pool) as served:
        status, text, _ = await served.chat()
    assert (status, upstream.hits()) == (403, 2)
    assert "firewall" in text
    assert all(instance.is_available for instance in pool)


async def test_a_second_request_that_is_refused_parks_the_key(upstream: FakeUpstream) -> None:
    upstream.defaults[KEYS[0]] = error(402, "Insufficient Balance")
    clock = FakeClock()
    pair = keys(upstream, 2, clock=clock)
    async with serving(*pair, clock=clock) as served:
        for passed_s, hits in ((0, 1), (1, 1), (5, 2), (6, 2), (500, 2)):
            clock.advance(passed_s)
            for _ in range(2):
                assert_complete(await served.chat(headers=CYCLE))
            assert upstream.hits(KEYS[0]) == hits, f"after {passed_s} s"


@pytest.mark.proves("F55")
@pytest.mark.parametrize(
    "reply",
    [
        error(401, "No."),
        error(402, "Insufficient Balance"),
        error(402, "Payment required"),
        error(403, "This account has been suspended."),
        error(403, "Forbidden"),
        error(429, "No."),
        error(400, "Incorrect API key provided"),
        error(400, "Restricted.", code="organization_restricted"),
    ],
    ids=lambda reply: f"{reply.status} {reply.error['message']}",
)
async def test_what_costs_the_upstream_nothing_is_no_attempt(
    upstream: FakeUpstream, reply: Reply
) -> None:
    upstream.default = reply
    key = "the-tenth-key-secret"
    upstream.defaults[key] = Reply()
    bad = [make_instance(upstream, n, provider=Fake, **secret(f"bad-{n}")) for n in range(1, 10)]
    good = make_instance(upstream, 10, **secret(key))
    async with serving(*bad, good, max_attempts=2) as served:
        for _ in range(3):
            assert_complete(await served.chat())


@pytest.mark.proves("F54")
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("reply", [error(403, "Forbidden"), error(402, "Payment required")])
async def test_a_refusal_by_every_key_is_the_requests_and_keeps_its_words(
    upstream: FakeUpstream, reply: Reply, count: int
) -> None:
    upstream.choose = lambda received: reply if b"poison" in received.raw else None
    pool = keys(upstream, count)
    body = {"messages": [{"role": "user", "content": "poison"}], "stream": True}
    async with serving(*pool) as served:
        for n in (1, 2):
            status, text, _ = await served.chat(body)
            assert reply.error is not None
            assert (status, upstream.hits()) == (reply.status, n * count)
            assert json.loads(text)["error"]["message"] == reply.error["message"]
        for _ in range(count):
            assert_complete(await served.chat())
    assert all(instance.is_available for instance in pool)


@pytest.mark.proves("F54")
async def test_a_firewall_is_asked_twice_at_most(upstream: FakeUpstream) -> None:
    upstream.default = PAGE
    async with serving(*keys(upstream, 1)) as served:
        status, text, _ = await served.chat()
    assert (status, upstream.hits()) == (403, 2)
    assert "firewall" in text


@pytest.mark.parametrize(
    "reply",
    [
        error(400, "The model has been decommissioned.", code="model_decommissioned"),
        error(400, "Model Not Exist"),
        error(410, "The model m has been retired."),
    ],
    ids=lambda reply: reply.error["message"],
)
async def test_a_model_that_is_gone_is_not_found_whatever_the_upstreams_status(
    upstream: FakeUpstream, reply: Reply
) -> None:
    upstream.default = reply
    async with serving(*keys(upstream, 2)) as served:
        status, text, _ = await served.chat({**HELLO, "model": "fake/m"})
    assert reply.error is not None
    assert (status, json.loads(text)["error"]["message"]) == (404, reply.error["message"])


def secret(key: str) -> dict[str, Any]:
    from nexus_gateway.secret import Secret

    return {"key": Secret(key)}


@pytest.mark.proves("F56")
@pytest.mark.parametrize(
    "reply",
    [
        Reply(status=429, headers={"Retry-After": "3600"}),
        Reply(status=503, error={"message": "The model is overloaded."}),
        Reply(status=404, error={"message": "The model `a` does not exist."}),
    ],
    ids=["limited", "overloaded", "unknown"],
)
async def test_one_model_of_a_key_says_nothing_about_another(
    upstream: FakeUpstream, reply: Reply
) -> None:
    upstream.choose = lambda received: reply if received.body["model"] == "a" else None
    instance = make_instance(upstream, model="a", other_models=("b",))
    async with serving(instance, max_attempts=2) as served:
        for _ in range(4):
            assert (await served.chat({**HELLO, "model": "fake/a", "stream": True}))[0] != 200
            assert_complete(await served.chat({**HELLO, "model": "fake/b", "stream": True}))
        health = await served.health()
        # `auto` goes to the model that answers.
        assert_complete(await served.chat({**HELLO, "model": "auto", "stream": True}))
    states = {m["model"]: m for m in health["providers"][0]["models"]}
    assert states["b"]["parkReason"] is None
    assert states["b"]["circuitState"] == "CLOSED"
    assert states["a"] != states["b"]


@pytest.mark.proves("F57")
@pytest.mark.parametrize("delay", ["head_delay_s", "first_delay_s"])
async def test_the_last_instance_is_waited_for_and_asked_once(
    upstream: FakeUpstream, delay: str
) -> None:
    slow = {delay: 0.6}
    upstream.default = Reply(**slow)
    pool = keys(upstream, 2)
    async with serving(*pool, first_token_timeout_ms=100, idle_timeout_ms=5000) as served:
        assert_complete(await served.chat())
        assert upstream.hits() == (2 if delay == "head_delay_s" else 1)
        assert all(instance.default.breaker.is_healthy for instance in pool[:0])
    assert [i.default.breaker.failures_in_a_row for i in pool] == [0, 0], "the request is slow"


@pytest.mark.proves("F57", "F75")
async def test_what_only_doubtful_evidence_keeps_away_is_an_alternative(
    upstream: FakeUpstream,
) -> None:
    suspected, slow = pool = keys(upstream, 2)
    upstream.defaults[KEYS[1]] = Reply(head_delay_s=30)
    async with serving(*pool, first_token_timeout_ms=200) as served:
        suspected.suspect_key("another request")
        assert suspected.default.parked_for_s()
        assert_complete(await served.chat())
    assert [upstream.hits(key) for key in KEYS[:2]] == [1, 1]
    assert slow.default.breaker.failures_in_a_row == 1


@pytest.mark.proves("F57")
async def test_a_role_is_a_sign_of_life_once(upstream: FakeUpstream) -> None:
    """Otherwise the first of two would be given up between its head and its content."""
    role = b'data: {"choices":[{"index":0,"delta":{"role":"assistant"}}]}\n\n'
    answer = Reply().text
    words = b'data: {"choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":"stop"}]}\n\n'

    async def slow(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in (role, words % answer.encode() + b"data: [DONE]\n\n"):
            await asyncio.sleep(0.6)
            await response.write(piece)
        return response

    app = web.Application()
    app.router.add_post("/v1/chat/completions", slow)
    async with TestServer(app) as server:
        pool = [make_instance(str(server.make_url("/v1"))), make_instance(upstream, 2)]
        limits = {"first_token_timeout_ms": 500, "idle_timeout_ms": 1000}
        async with serving(*pool, **limits) as served:
            _, _, headers = await served.chat(headers=CYCLE)
            assert headers["X-Nexus-Provider"] == "Fake (Key #1)"


async def test_an_instance_may_have_its_own_limit_for_a_first_token(upstream: FakeUpstream) -> None:
    upstream.defaults[KEYS[0]] = Reply(head_delay_s=0.5, text="slow but here")
    slow, other = keys(upstream, 2)
    slow.first_token_timeout_ms = 30_000
    async with serving(slow, other, first_token_timeout_ms=50) as served:
        assert "slow" in (await served.chat(headers=CYCLE))[1]
    assert upstream.hits() == 1


def empty(**choice: Any) -> Reply:
    message = {"role": "assistant", "content": "", **choice}
    body = {"id": "x", "object": "chat.completion", "model": "m", "created": 1}
    body["choices"] = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return Reply(body=json.dumps(body).encode())


EMPTY_STREAM = b"""data: {"id":"x","choices":[{"delta":{"role":"assistant","content":""}}]}

data: {"id":"x","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}

data: [DONE]

"""
NOTHING = {
    "stream": (Reply(body=EMPTY_STREAM, content_type="text/event-stream"), True),
    "whole": (empty(), False),
    "null": (empty(content=None, refusal=None, annotations=[]), False),
}


@pytest.mark.proves("F58")
@pytest.mark.parametrize("nothing", NOTHING)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_an_empty_answer_is_asked_for_once_more_elsewhere(
    upstream: FakeUpstream, nothing: str, path: str
) -> None:
    reply, stream = NOTHING[nothing]
    upstream.defaults[KEYS[0]] = reply
    pool = keys(upstream, 3)
    body = {**HELLO, "stream": stream, "max_tokens": 9}
    async with serving(*pool) as served:
        status, text, _ = await served.post(path, body, headers=CYCLE)
        assert (status, "Hello" in text, upstream.hits()) == (200, True, 2)
        upstream.defaults.clear()
        upstream.default = reply
        status, text, _ = await served.post(path, body)
        assert (status, "error" in text, upstream.hits()) == (200, False, 4)
    assert all(instance.is_available for instance in pool)
    assert [i.health.success_rate() for i in pool] == [1, 1, 1]
