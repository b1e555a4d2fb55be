"""The main path on real sockets: attempts, fail-over, streams, callers that leave."""

from __future__ import annotations

import asyncio
import json

import pytest
from answers import TEXT, assert_complete, chunks, text_of
from clock import FakeClock
from fakes import HELLO, KEYS, Other, make_instance, serving
from waiting import until

from nexus_gateway.routing.breaker import State
from nexus_gateway.routing.scheduler import STEPS_MS
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream

FAILURES = {
    "401": Reply(status=401),
    "402": Reply(status=402),
    "403": Reply(status=403),
    "408": Reply(status=408),
    "429": Reply(status=429, headers={"Retry-After": "7"}),
    "quota": Reply(status=429, error={"message": "x", "code": "insufficient_quota"}),
    "500": Reply(status=500),
    "302": Reply(status=302, headers={"Location": "http://127.0.0.1:9/"}),
    "hang": Reply(hang=True),
    "reset": Reply(reset=True),
    "html": Reply(body=b"<html>", content_type="text/html"),
    "empty": Reply(body=b""),
    "broken json": Reply(body=b"{"),
    "json error": Reply(body=b'{"error": {"message": "no"}}'),
}
STREAM_FAILURES = {
    "cut before content": Reply(cut_after=0),
    "end before content": Reply(end_after=0),
    "error first": Reply(error_after=0, role_first=False),
    "error after role": Reply(error_after=0),
    "garbage first": Reply(garbage_after=0),
    "silence": Reply(hang_after=0),
    "done at once": Reply(body=b"data: [DONE]\n\n", content_type="text/event-stream"),
}
REASONS = {"401": "bad_key", "402": "bad_key", "403": "bad_key", "quota": "bad_key"}


@pytest.mark.proves("F01", "F04", "F12", "F14", "F17", "F27", "I-03", "I-34")
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("failure", FAILURES)
async def test_a_failure_before_the_response_fails_over(
    upstream: FakeUpstream, failure: str, stream: bool
) -> None:
    upstream.defaults[KEYS[0]] = FAILURES[failure]
    if failure == "hang" and not stream:
        pytest.skip("nothing tells a slow answer from none")
    limits = {"first_token_timeout_ms": 1000, "response_timeout_ms": 2000}
    async with serving(make_instance(upstream), make_instance(upstream, 2), **limits) as served:
        headers = {"X-Routing-Mode": "round-robin"}
        answer = await served.chat(stream=stream, headers=headers)
        assert_complete(answer, stream)
        assert answer[2]["X-Nexus-Provider"] == "Fake (Key #2)"
        assert answer[2]["X-Nexus-Attempts"] == "2"
        first = (await served.health())["providers"][0]
        assert first["lastReason"]
        expected = REASONS.get(failure, "rate_limited" if failure == "429" else None)
        assert first["parkReason"] == expected
        assert KEYS[0] not in str(await served.health())
        assert [i.in_flight for i in served.instances] == [0, 0]


@pytest.mark.proves("F14", "F16", "F22", "I-30")
@pytest.mark.parametrize("failure", STREAM_FAILURES)
async def test_a_stream_that_fails_before_its_first_content_fails_over(
    upstream: FakeUpstream, failure: str
) -> None:
    upstream.defaults[KEYS[0]] = STREAM_FAILURES[failure]
    instances = make_instance(upstream), make_instance(upstream, 2)
    limits = {"first_token_timeout_ms": 1000, "idle_timeout_ms": 1000}
    async with serving(*instances, **limits) as served:
        answer = await served.chat(headers={"X-Routing-Mode": "round-robin"})
        assert_complete(answer)
        assert upstream.hits(KEYS[0]) == 1
        assert instances[0].health.success_rate() == 0


@pytest.mark.proves("F13")
async def test_a_refused_connection_fails_over(upstream: FakeUpstream) -> None:
    instances = make_instance("http://127.0.0.1:1/v1"), make_instance(upstream, 2)
    async with serving(*instances) as served:
        assert_complete(await served.chat(headers={"X-Routing-Mode": "round-robin"}))
        assert instances[0].default.last_reason == "refused the connection"


UNUSUAL = {
    "crlf": Reply(newline="\r\n"),
    "cr": Reply(newline="\r"),
    "comments": Reply(comments=True),
    "bytewise": Reply(bytewise=True, text="Grüße, 世界"),
    "bytewise crlf": Reply(bytewise=True, newline="\r\n", text="Grüße"),
    "bom": Reply(bom=True),
    "fields": Reply(fields=True),
    "no done": Reply(done=False),
    "no finish": Reply(finish=None),
    "unasked usage": Reply(usage=True),
    "slow": Reply(delay_s=0.01),
}


@pytest.mark.proves("F23", "F24", "I-32", "I-36", "I-37")
@pytest.mark.parametrize("kind", UNUSUAL)
async def test_unusual_streams_arrive_complete(upstream: FakeUpstream, kind: str) -> None:
    reply = upstream.default = UNUSUAL[kind]
    async with serving(make_instance(upstream)) as served:
        status, text, _ = await served.chat()
    assert status == 200
    assert text_of(text) == reply.text
    assert text.endswith("data: [DONE]\n\n")
    assert {c["model"] for c in chunks(text)} == {"Fake (Key #1)"}
    assert all(c["choices"] for c in chunks(text))
    for event in text.removesuffix("\n\n").split("\n\n"):
        assert event.startswith(("data: ", ": ")), event


BREAKS = {
    "cut": (Reply(cut_after=3, delay_s=0.01), "upstream_stream_error"),
    "ended early": (Reply(end_after=3, delay_s=0.01), "upstream_stream_error"),
    "garbage": (Reply(garbage_after=3, delay_s=0.01), "upstream_stream_error"),
    "error event": (Reply(error_after=3, delay_s=0.01), "529"),
    "silence": (Reply(hang_after=3, delay_s=0.01), "upstream_idle_timeout"),
}


@pytest.mark.proves("F18", "F19", "F20", "F21", "F22", "I-15", "I-30", "I-31", "I-34")
@pytest.mark.parametrize("kind", BREAKS)
async def test_a_stream_that_breaks_ends_with_an_error_event(
    upstream: FakeUpstream, kind: str
) -> None:
    upstream.default, code = BREAKS[kind]
    instance = make_instance(upstream)
    limits = {"idle_timeout_ms": 1000} if kind == "silence" else {}
    async with serving(instance, **limits) as served:
        status, text, _ = await served.chat()
    assert status == 200
    *good, last = chunks(text)
    assert len(good) == 4
    assert last["error"]["code"] == code
    assert "[DONE]" not in text
    assert instance.health.success_rate() == 0
    assert instance.in_flight == 0
    assert upstream.hits() == 1


@pytest.mark.proves("F03", "I-02", "S-16")
@pytest.mark.parametrize("status", [400, 413, 415, 422])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_refusal_goes_to_the_caller(
    upstream: FakeUpstream, status: int, stream: bool
) -> None:
    error = {"message": "context too long", "type": "x", "param": None, "code": 7, "more": [1]}
    upstream.default = Reply(status=status, error=error, headers={"X-Secret": "1"})
    instance = make_instance(upstream)
    async with serving(instance) as served:
        for _ in range(4):
            got, text, headers = await served.chat(stream=stream)
    assert got == status
    assert json.loads(text) == {"error": {**error, "code": "7"}}
    assert (headers["X-Nexus-Provider"], headers["X-Nexus-Attempts"]) == ("Fake (Key #1)", "1")
    assert headers["Server-Timing"]
    assert "X-Secret" not in headers
    assert upstream.hits() == 4
    assert instance.health.success_rate() == 1
    assert instance.default.breaker.state() is State.CLOSED


async def test_a_moderation_error_goes_to_the_caller(upstream: FakeUpstream) -> None:
    error = {"message": "flagged", "code": 403, "metadata": {"reasons": ["x"]}}
    upstream.default = Reply(status=403, error=error)
    async with serving(make_instance(upstream)) as served:
        assert (await served.chat())[0] == 403
        assert served.instances[0].default.parked_for_s() == 0


async def test_a_404_is_passed_on_only_if_the_caller_named_the_model(
    upstream: FakeUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    upstream.defaults[KEYS[0]] = Reply(status=404)
    async with serving(make_instance(upstream), make_instance(upstream, 2)) as served:
        headers = {"X-Routing-Mode": "round-robin"}
        assert_complete(await served.chat(headers=headers))
        assert "check FAKE_MODEL" in caplog.text
        caplog.clear()
        await served.chat(headers=headers)
        assert "check FAKE_MODEL" not in caplog.text
        body = {**HELLO, "model": "fake/other", "stream": True}
        assert_complete(await served.chat(body, headers=headers))  # the other key has the model
        upstream.default = Reply(status=404)
        status, _, _ = await served.chat(body, headers=headers)
        assert status == 404


@pytest.mark.proves("F07", "F08", "F10", "I-01", "I-13")
async def test_three_failures_open_the_circuit_and_one_probe_is_sent(
    upstream: FakeUpstream,
) -> None:
    clock = FakeClock()
    upstream.defaults[KEYS[0]] = Reply(status=500)
    pair = make_instance(upstream, clock=clock), make_instance(upstream, 2, clock)
    async with serving(*pair, clock=clock) as served:
        headers = {"X-Routing-Mode": "round-robin"}
        for _ in range(8):
            assert_complete(await served.chat(headers=headers))
        assert upstream.hits(KEYS[0]) == 3
        health = await served.health()
        assert [p["circuitState"] for p in health["providers"]] == ["OPEN", "CLOSED"]
        assert health["status"] == "degraded"
        upstream.defaults[KEYS[0]] = Reply(first_delay_s=0.2)
        clock.advance(60)
        answers = [served.chat(headers=headers) for _ in range(50)]
        for answer in await asyncio.gather(*answers):
            assert_complete(answer)
        assert upstream.hits(KEYS[0]) == 4
        assert pair[0].default.breaker.state() is State.CLOSED


@pytest.mark.proves("F02", "F05", "I-22")
async def test_no_instance_left_is_429_or_503_with_a_true_retry_after(
    upstream: FakeUpstream,
) -> None:
    clock = FakeClock()
    upstream.default = Reply(status=429, headers={"Retry-After": "7"})
    pair = make_instance(upstream, clock=clock), make_instance(upstream, 2, clock)
    async with serving(*pair, clock=clock) as served:
        status, text, headers = await served.chat()
        assert (status, headers["Retry-After"], headers["x-should-retry"]) == (429, "7", "true")
        assert "Fake (Key #1): rate limited" in text
        clock.advance(3)
        assert (await served.chat())[2]["Retry-After"] == "4"
        assert upstream.hits() == 2
        upstream.default = Reply(status=401)
        clock.advance(5)
        status, text, headers = await served.chat()
        assert (status, headers["x-should-retry"]) == (503, "false")
        assert "Retry-After" not in headers  # some clients would wait, in vain
        assert (await served.health())["status"] == "unhealthy"
        assert not any(key in text for key in KEYS)


async def test_a_pool_of_one_tries_again_after_a_pause(upstream: FakeUpstream) -> None:
    upstream.script(Reply(status=500), Reply(status=503))
    async with serving(make_instance(upstream), backoff_ms=STEPS_MS) as served:
        answer = await served.chat()
        assert_complete(answer)
        assert answer[2]["X-Nexus-Attempts"] == "3"
        upstream.default = Reply(status=500)
        status, _, headers = await served.chat()
        assert (status, headers["Retry-After"], headers["x-should-retry"]) == (503, "1", "true")
        assert upstream.hits() == 3 + 6
        upstream.default = Reply()
        assert_complete(await served.chat())  # probed early: there is no other instance


@pytest.mark.proves("I-21")
async def test_attempts_are_bounded(upstream: FakeUpstream) -> None:
    upstream.default = Reply(status=500)
    instances = [make_instance(upstream, n) for n in (1, 2, 3)]
    async with serving(*instances, max_attempts=2) as served:
        status, text, _ = await served.chat()
    assert (status, upstream.hits()) == (503, 2)
    assert text.count("answered 500") == 2


@pytest.mark.proves("F29", "I-16", "I-33")
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("reply", [Reply(hang=True), Reply(hang_after=2, head_delay_s=0.05)])
async def test_a_caller_that_leaves_closes_the_upstream(
    upstream: FakeUpstream, reply: Reply, stream: bool
) -> None:
    upstream.default = Reply(hang=True) if not stream else reply
    instance = make_instance(upstream)
    async with serving(instance) as served:
        before = len(asyncio.all_tasks())
        call = asyncio.create_task(served.chat(stream=stream))
        await until(lambda: upstream.requests)
        await asyncio.sleep(0.1)
        assert instance.in_flight == 1
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert await upstream.requests[0].gone(30)
        await until(lambda: instance.in_flight == 0)
        assert instance.health.success_rate() == 1
        assert upstream.hits() == 1
        await until(lambda: len(asyncio.all_tasks()) <= before)
        assert (await served.health())["inFlightRequests"] == 0


async def test_ten_megabytes_of_image_arrive_unchanged(upstream: FakeUpstream) -> None:
    url = "data:image/jpeg;base64," + "A7+/" * (10 * 1024 * 1024 // 4)
    part = {"type": "image_url", "image_url": {"url": url}}
    body = {"messages": [{"role": "user", "content": [part]}], "x-unknown": {"é": [1.5, 2**70]}}
    text_only = make_instance(upstream, 2, provider=Other, name="other")
    async with serving(make_instance(upstream), text_only) as served:
        for _ in range(3):
            assert (await served.chat(body))[0] == 200
    received = json.loads(upstream.requests[0].raw)
    assert received == {**body, "model": "fake-large", "stream": True}
    assert upstream.hits(KEYS[1]) == 0


SOURCE = {"type": "base64", "media_type": "image/png", "data": "AA=="}
IMAGE_BLOCK = {"type": "image", "source": SOURCE}
INPUT_IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,AA=="}


async def test_an_image_that_no_instance_accepts_is_an_error(upstream: FakeUpstream) -> None:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    body = {"messages": [{"role": "user", "content": [part]}]}
    async with serving(make_instance(upstream, provider=Other)) as served:
        status, text, _ = await served.chat(body)
        for path, image in (("messages", IMAGE_BLOCK), ("responses", INPUT_IMAGE)):
            key = "input" if path == "responses" else "messages"
            asked = {"model": "auto", key: [{"role": "user", "content": [image]}]}
            answer, error, headers = await served.post(f"/v1/{path}", asked)
            assert (answer, headers["x-should-retry"]) == (400, "false")
            assert json.loads(error)["error"]["type"] == "invalid_request_error"
    assert (status, json.loads(text)["error"]["code"]) == (400, "no_capable_model")


@pytest.mark.proves("S-01", "S-17")
async def test_fields_that_choose_an_upstream_are_never_sent(upstream: FakeUpstream) -> None:
    body = {**HELLO, "api_base": "http://evil", "base_url": "http://evil", "api_key": "k"}
    headers = {"Cookie": "a=b", "X-Api-Key": "k", "Authorization": "Bearer mine"}
    async with serving(make_instance(upstream)) as served:
        assert_complete(await served.chat(body, headers=headers))
    (received,) = upstream.requests
    assert set(received.body) == {"messages", "model", "stream"}
    assert not {"Cookie", "X-Api-Key"} & set(received.headers)
    assert received.key == KEYS[0]


async def test_keep_alive_comments_are_sent_early(upstream: FakeUpstream) -> None:
    upstream.script(Reply(status=500, head_delay_s=0.1), key=KEYS[0])
    upstream.defaults[KEYS[1]] = Reply(first_delay_s=0.1)
    pair = make_instance(upstream), make_instance(upstream, 2)
    async with serving(*pair, keepalive_ms=30) as served:
        headers = {"X-Routing-Mode": "round-robin"}
        status, text, _ = await served.chat(headers=headers)
        assert status == 200
        assert text.startswith(": keep-alive\n\n")
        assert text_of(text) == TEXT
        upstream.default = upstream.defaults[KEYS[1]] = Reply(status=500, head_delay_s=0.1)
        status, text, _ = await served.chat(headers=headers)
        assert status == 200
        assert chunks(text)[-1]["error"]["code"] == "no_candidate"


async def test_the_upstreams_model_can_be_kept(upstream: FakeUpstream) -> None:
    async with serving(make_instance(upstream), response_model="upstream") as served:
        _, text, _ = await served.chat()
        assert {c["model"] for c in chunks(text)} == {"fake-model"}
        _, text, _ = await served.chat(stream=False)
        assert json.loads(text)["model"] == "fake-model"


async def test_a_connection_is_reused(upstream: FakeUpstream) -> None:
    async with serving(make_instance(upstream)) as served:
        for _ in range(5):
            assert_complete(await served.chat())
    assert upstream.hits() == 5


async def test_a_rate_limit_of_zero_seconds_is_still_a_rate_limit(upstream: FakeUpstream) -> None:
    upstream.default = Reply(status=429, headers={"Retry-After": "0"})
    async with serving(make_instance(upstream)) as served:
        status, _, headers = await served.chat()
    assert (status, headers["Retry-After"], headers["x-should-retry"]) == (429, "1", "true")
    assert upstream.hits() == 1


@pytest.mark.proves("I-04")
async def test_a_burst_with_a_bad_key_parks_it_once(
    upstream: FakeUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    clock = FakeClock()
    upstream.default = Reply(status=401, head_delay_s=0.1)
    instance = make_instance(upstream, clock=clock)
    async with serving(instance, clock=clock) as served:
        await asyncio.gather(*(served.chat() for _ in range(5)))
    assert upstream.hits() == 5
    assert instance.default.parked_for_s() == 600
    assert caplog.text.count("is parked") == 1


@pytest.mark.proves("S-06")
async def test_a_key_repeated_by_an_upstream_is_masked(upstream: FakeUpstream) -> None:
    error = {"message": f"Bad Bearer {KEYS[0]} ({KEYS[0][:9]}****ret)", "more": [KEYS[0]]}
    upstream.script(Reply(status=400, error=error))
    event = f'data: {{"error": {{"message": "no {KEYS[0]}"}}}}\n\n'
    async with serving(make_instance(upstream), max_attempts=1) as served:
        status, text, _ = await served.chat()
        assert (status, KEYS[0] in text) == (400, False)
        assert "Bad Bearer *** (***" in text
        good = 'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
        body = good + ": x\n\n" * 50_000 + event
        upstream.default = Reply(body=body.encode(), content_type="text/event-stream")
        _, text, _ = await served.chat()
        assert KEYS[0] not in text


@pytest.mark.parametrize("usage", ["BROKEN", '"\\ud800"', "[1]", '{"completion_tokens": "x"}'])
async def test_invalid_usage_leaves_nothing_in_flight(upstream: FakeUpstream, usage: str) -> None:
    first = 'data: {"model":"m","choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
    middle = f'data: {{"model":"m","usage":{usage}}}\n\n'
    last = 'data: {"model":"m","choices":[{"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    body = (first + middle + last).encode()
    upstream.default = Reply(body=body, content_type="text/event-stream")
    instance = make_instance(upstream)
    async with serving(instance) as served:
        await served.chat()
    assert instance.in_flight == 0


@pytest.mark.parametrize("deep", ['{"message": "m", "a": %s}', '{"message": %s}'])
async def test_a_deep_error_is_flattened(upstream: FakeUpstream, deep: str) -> None:
    body = '{"error": ' + deep % ("[" * 1000 + "]" * 1000) + "}"
    upstream.default = Reply(status=400, body=body.encode())
    async with serving(make_instance(upstream)) as served:
        status, text, _ = await served.chat()
    assert status == 400
    assert set(json.loads(text)["error"]) == {"message", "type", "param", "code"}
