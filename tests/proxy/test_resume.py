"""A stream that breaks in the middle and is resumed by another instance."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from fakes import HELLO, KEYS, Other, make_instance, serving
from official import openai

from nexus_gateway.proxy.record import RequestRecord
from nexus_gateway.proxy.resumption import CONTINUE, read_answer
from nexus_gateway.routing.breaker import State
from nexus_gateway.telemetry.snapshot import request_json
from nexus_gateway.testing.conformance.conversations import read_stream
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream
from nexus_gateway.wire import json_codec

ROUND = {"X-Routing-Mode": "round-robin"}
BREAKS = {
    "cut": Reply(text="One two three four", delay_s=0.02, cut_after=2),
    "end": Reply(text="One two three four", delay_s=0.02, end_after=2),
    "error": Reply(text="One two three four", delay_s=0.02, error_after=2),
    "garbage": Reply(text="One two three four", delay_s=0.02, garbage_after=2),
    "silence": Reply(text="One two three four", delay_s=0.02, hang_after=2),
}
REST = Reply(text=" three four", model="another-model")


def chunks(text: str) -> list[Any]:
    events = [e for e in text.split("\n\n") if e.startswith("data: {")]
    return [json.loads(e.removeprefix("data: ")) for e in events]


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("kind", BREAKS)
async def test_the_caller_gets_one_stream(upstream: FakeUpstream, kind: str) -> None:
    upstream.defaults = {KEYS[0]: BREAKS[kind], KEYS[1]: REST}
    instances = make_instance(upstream), make_instance(upstream, 2)
    async with serving(*instances, resume=True, idle_timeout_ms=150) as served:
        body = {**HELLO, "stream": True, "max_tokens": 50}
        status, text, headers = await served.chat(body, headers=ROUND)
        assert (status, read_stream(text).text) == (200, "One two three four")
        assert len({(c["id"], c["created"], c["model"]) for c in chunks(text)}) == 1
        assert ": resumed by Fake (Key #2)\n\n" in text
        assert headers["X-Nexus-Provider"] == "Fake (Key #1)"
        assert instances[0].health.success_rate() == 0
        assert [i.in_flight for i in instances] == [0, 0]
    continuation = upstream.requests[1].body
    assert continuation["max_tokens"] == 48
    assert continuation["messages"][1:] == [
        {"role": "assistant", "content": "One two"},
        {"role": "user", "content": CONTINUE},
    ]


async def test_the_official_client_reads_one_stream(upstream: FakeUpstream) -> None:
    upstream.defaults = {KEYS[0]: BREAKS["cut"], KEYS[1]: REST}
    instances = make_instance(upstream), make_instance(upstream, 2)
    async with (
        serving(*instances, resume=True) as served,
        openai.AsyncOpenAI(
            base_url=served.url + "/v1", api_key="k", max_retries=0, default_headers=ROUND
        ) as client,
    ):
        stream = await client.chat.completions.create(
            model="auto",
            messages=HELLO["messages"],
            stream=True,
            stream_options={"include_usage": True},
        )
        parts = [chunk async for chunk in stream]
    assert "".join(p.choices[0].delta.content or "" for p in parts[:-1]) == "One two three four"
    assert parts[-1].usage


async def test_a_resumed_stream_may_break_again(upstream: FakeUpstream) -> None:
    upstream.defaults = {
        KEYS[0]: BREAKS["cut"],
        KEYS[1]: Reply(text=" three x", cut_after=2),
        KEYS[2]: Reply(text=" four"),
    }
    instances = [make_instance(upstream, n) for n in (1, 2, 3)]
    async with serving(*instances, resume=True) as served:
        _, text, _ = await served.chat(headers=ROUND)
    assert read_stream(text).text == "One two three four"
    assert upstream.requests[2].body["messages"][1]["content"] == "One two three"
    assert len(upstream.requests[2].body["messages"]) == 3


async def test_if_no_instance_can_resume_the_stream_ends_with_an_error(
    upstream: FakeUpstream,
) -> None:
    upstream.defaults = {KEYS[0]: BREAKS["cut"], KEYS[1]: Reply(status=500)}
    instances = make_instance(upstream), make_instance(upstream, 2)
    async with serving(*instances, resume=True, max_attempts=2) as served:
        status, text, _ = await served.chat(headers=ROUND)
        assert status == 200
        assert chunks(text)[-1]["error"]["code"] == "upstream_stream_error"
        assert "[DONE]" not in text
        assert text.count('"error"') == 1


@pytest.mark.parametrize("max_attempts", [1, 2, 3])
async def test_the_time_of_the_first_content_stays_if_no_instance_can_resume(
    upstream: FakeUpstream, caplog: pytest.LogCaptureFixture, max_attempts: int
) -> None:
    upstream.script(BREAKS["cut"], key=KEYS[0])
    upstream.default = Reply(status=500)
    caplog.set_level("INFO", "nexus_gateway")
    records: list[RequestRecord] = []
    instances = make_instance(upstream), make_instance(upstream, 2)
    async with serving(*instances, resume=True, max_attempts=max_attempts) as served:
        served.gateway.recorder.observers.append(records.append)
        await served.chat(headers=ROUND)
    (record,) = records
    assert [attempt.status for attempt in record.attempts] == [200, 500, 500][:max_attempts]
    broken_ms = record.attempts[0].duration_ms
    assert record.upstream_ms <= record.first_ms < broken_ms < record.total_ms
    assert request_json(record)["firstMs"] == round(record.first_ms, 1)
    lines = [vars(line).get("fields", {}) for line in caplog.records]
    assert round(record.first_ms) in [line.get("first_ms") for line in lines]


@pytest.mark.parametrize(
    "more",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"response_format": {"type": "json_object"}},
        {"n": 2},
        {"logprobs": True},
    ],
    ids=lambda more: next(iter(more)),
)
async def test_only_plain_text_is_resumed(upstream: FakeUpstream, more: dict[str, Any]) -> None:
    upstream.defaults = {KEYS[0]: BREAKS["cut"], KEYS[1]: REST}
    async with serving(make_instance(upstream), make_instance(upstream, 2), resume=True) as served:
        _, text, _ = await served.chat({**HELLO, "stream": True, **more}, headers=ROUND)
        assert chunks(text)[-1]["error"]
        assert upstream.hits() == 1


async def test_without_the_setting_nothing_is_resumed(upstream: FakeUpstream) -> None:
    upstream.defaults = {KEYS[0]: BREAKS["cut"], KEYS[1]: REST}
    async with serving(make_instance(upstream), make_instance(upstream, 2)) as served:
        _, text, _ = await served.chat(headers=ROUND)
        assert chunks(text)[-1]["error"]
        assert upstream.hits() == 1


async def test_another_provider_may_resume(upstream: FakeUpstream) -> None:
    upstream.defaults = {KEYS[0]: BREAKS["cut"], KEYS[1]: REST}
    other = make_instance(upstream, 2, provider=Other, name="other")
    async with serving(make_instance(upstream), other, resume=True) as served:
        _, text, _ = await served.chat(headers=ROUND)
        assert read_stream(text).text == "One two three four"
        assert other.default.breaker.state() is State.CLOSED


async def test_a_stream_with_only_reasoning_is_started_again(upstream: FakeUpstream) -> None:
    upstream.defaults = {
        KEYS[0]: Reply(text="One two", reasoning=True, cut_after=1),
        KEYS[1]: Reply(text="One two", reasoning=True),
    }
    async with serving(make_instance(upstream), make_instance(upstream, 2), resume=True) as served:
        _, text, _ = await served.chat(headers=ROUND)
        assert read_stream(text).text == "One two"
    assert upstream.requests[1].body["messages"] == HELLO["messages"]


async def test_a_resuming_instances_speed_counts_only_its_own_tokens(
    upstream: FakeUpstream,
) -> None:
    upstream.defaults = {
        KEYS[0]: Reply(text="word " * 300, delay_s=0.0001, cut_after=250),
        KEYS[1]: Reply(text="a b c d", delay_s=0.05),
    }
    instances = make_instance(upstream), make_instance(upstream, 2)
    async with serving(*instances, resume=True) as served:
        await served.chat(headers=ROUND)
        speed = instances[1].health.tokens_per_s()
        assert speed is not None
        assert speed < 100  # four or five words in 0.15 s; not 250 more


@pytest.mark.parametrize("rest", [Reply(hang=True), Reply(status=500)], ids=["left", "failed"])
async def test_the_log_distinguishes_a_caller_that_left_from_a_break(
    upstream: FakeUpstream, caplog: pytest.LogCaptureFixture, rest: Reply
) -> None:
    upstream.defaults = {KEYS[0]: BREAKS["cut"], KEYS[1]: rest}
    instances = make_instance(upstream), make_instance(upstream, 2)
    caplog.set_level("INFO", "nexus_gateway")
    async with serving(*instances, resume=True, max_attempts=2) as served:
        asking = asyncio.create_task(served.chat(headers=ROUND))
        while upstream.hits() < 2:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.01)
        if rest.hang:
            asking.cancel()
        await asyncio.wait([asking])
        while served.gateway.drain.in_flight:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert [i.in_flight for i in instances] == [0, 0]
    lines = [vars(record).get("fields", {}) for record in caplog.records]
    outcomes = [(line["outcome"], line["resumed"]) for line in lines if "outcome" in line]
    assert outcomes == [("cancelled", 1) if rest.hang else ("failure", None)]


HALVES = "One \ud83d \ude00 two"


@pytest.mark.parametrize("codec", ["orjson", "json"])
@pytest.mark.parametrize("replies", [(HALVES, "x"), ("One two three four", HALVES)])
async def test_half_a_character_ends_the_stream_with_an_error(
    upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch, replies: tuple[str, str], codec: str
) -> None:
    """A codec may read what it cannot write; the caller gets the error of any break."""
    if codec == "json":
        monkeypatch.setattr(json_codec, "orjson", None)
    upstream.defaults = {
        KEYS[0]: Reply(text=replies[0], delay_s=0.02, cut_after=3),
        KEYS[1]: Reply(text=replies[1], delay_s=0.02),
    }
    instances = make_instance(upstream), make_instance(upstream, 2)
    async with serving(*instances, resume=True, max_attempts=2) as served:
        status, text, _ = await served.chat(headers=ROUND)
        assert (status, chunks(text)[-1]["error"]["code"]) == (200, "upstream_stream_error")
        assert [i.in_flight for i in instances] == [0, 0]


def test_a_finished_stream_is_not_resumed() -> None:
    ended = b'data: {"id":"a","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    assert read_answer([ended]) is None
    assert read_answer([b"data: {no\n\n"]) is None
    called = b'data: {"id":"a","choices":[{"index":0,"delta":{"tool_calls":[{}]}}]}\n\n'
    assert read_answer([called]) is None
