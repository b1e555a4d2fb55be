"""The reason of a request's outcome: in the log, in its record, in its span."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from clock import FakeClock
from fakes import HELLO, KEYS, make_instance, serving
from intruder import raw, request
from opentelemetry.trace import StatusCode
from spans import SAMPLED, TRACE, UNSAMPLED, Spans, traced
from waiting import until

from nexus_gateway.provider import Outcome
from nexus_gateway.proxy.record import RequestRecord
from nexus_gateway.routing.breaker import State
from nexus_gateway.secret import Secret
from nexus_gateway.telemetry.snapshot import request_json
from nexus_gateway.testing.gateway import Served
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream

ROUND = {"X-Routing-Mode": "round-robin"}
CUT = "broke in the middle of its answer: cut its answer off"
BREAKS = {
    CUT: Reply(cut_after=2, delay_s=0.03),
    "broke in the middle of its answer: sent an error instead of an answer": Reply(
        error_after=2, delay_s=0.02, error={"message": "the upstream's own message"}
    ),
    "broke in the middle of its answer: stopped sending": Reply(hang_after=2),
    "broke in the middle of its answer: sent something that is not an answer": Reply(
        garbage_after=2, delay_s=0.02
    ),
}
Fields = dict[str, Any]


@pytest.fixture(autouse=True)
def info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="nexus_gateway")


@pytest.fixture
def records() -> list[RequestRecord]:
    return []


def lines(caplog: pytest.LogCaptureFixture, message: str) -> list[Fields]:
    """Return the fields of the log lines with a message, without empty fields."""
    matching = [r for r in caplog.records if r.name == "nexus_gateway" and r.message == message]
    return [
        {"level": r.levelname, **{k: v for k, v in vars(r)["fields"].items() if v is not None}}
        for r in matching
    ]


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("why", BREAKS)
async def test_a_broken_stream_is_recorded_with_its_reason_and_time(
    upstream: FakeUpstream, caplog: pytest.LogCaptureFixture, records: list[RequestRecord], why: str
) -> None:
    upstream.default = BREAKS[why]
    idle_timeout_ms = 100 if BREAKS[why].hang_after else 60_000
    async with serving(make_instance(upstream), idle_timeout_ms=idle_timeout_ms) as served:
        served.gateway.recorder.observers.append(records.append)
        await served.chat()
    (record,), (line,) = records, lines(caplog, "chat")
    (attempt,) = record.attempts
    assert (attempt.outcome, attempt.reason, attempt.status) == (Outcome.FAILURE, why, 200)
    assert record.first_ms < record.total_ms
    assert attempt.duration_ms <= record.total_ms
    assert record.why == line["why"] == f"Fake (Key #1): {why}"
    assert (line["status"], line["outcome"], line["attempts"]) == (200, "failure", 1)
    assert "the upstream's own message" not in caplog.text


async def test_a_resumed_stream_is_recorded_with_the_instance_that_broke(
    upstream: FakeUpstream, records: list[RequestRecord]
) -> None:
    upstream.defaults[KEYS[0]] = BREAKS[CUT]
    upstream.defaults[KEYS[2]] = Reply(status=500)
    instances = [make_instance(upstream, n) for n in (1, 2, 3)]
    async with serving(*instances, resume=True) as served:
        served.gateway.recorder.observers.append(records.append)
        await served.chat(headers=ROUND)
        for instance in instances[1:]:
            instance.disable()
        await served.chat(headers=ROUND)
        instances[2].enable()
        await served.chat(headers=ROUND)
    (resumed, alone, both), reason = records, f"Fake (Key #1): {CUT}"
    assert (resumed.outcome, resumed.resumed, resumed.why) == ("success", 1, reason)
    assert resumed.attempts[0].duration_ms > 20  # the time until it broke
    assert alone.outcome == "failure"
    assert alone.why is not None
    assert alone.why.startswith(reason)
    assert alone.why.endswith("; excluded: Fake (Key #2) disabled, Fake (Key #3) disabled")
    assert both.why is not None
    assert "Fake (Key #3): answered 500" in both.why
    assert [a.outcome for a in both.attempts].count(Outcome.FAILURE) >= 2


async def test_only_a_fail_over_has_a_reason(
    upstream: FakeUpstream, caplog: pytest.LogCaptureFixture, records: list[RequestRecord]
) -> None:
    upstream.script(Reply(status=500), key=KEYS[0])
    async with serving(make_instance(upstream), make_instance(upstream, 2)) as served:
        served.gateway.recorder.observers.append(records.append)
        for _ in range(2):
            await served.chat({**HELLO, "model": "fake"}, headers=ROUND)
    moved, good = lines(caplog, "chat")
    assert moved["why"] == records[0].why == "Fake (Key #1): answered 500"
    assert (moved["outcome"], moved["attempts"]) == ("success", 2)
    assert "why" not in good
    assert records[1].why is None
    for line in (moved, good):
        assert (line["asked"], line["model"]) == ("fake", "fake-large")
        assert line["policy"] == "round-robin"
        assert "trace_id" not in line


async def test_a_request_without_attempts_lists_the_excluded_instances(
    upstream: FakeUpstream, caplog: pytest.LogCaptureFixture, records: list[RequestRecord]
) -> None:
    clock = FakeClock()
    refused, limited, off = (make_instance(upstream, n, clock) for n in (1, 2, 3))
    async with serving(refused, limited, off, clock=clock) as served:
        served.gateway.recorder.observers.append(records.append)
        refused.park_bad_key()
        limited.default.park(20)
        off.disable()
        status, _, headers = await served.chat()
        explained = await served.chat(headers={"X-Nexus-Explain": "true"})
    assert status == 503
    assert "X-Nexus-Explain" not in headers
    excluded = (
        "Fake (Key #1) key refused 600s, Fake (Key #2) rate limited 20s, Fake (Key #3) disabled"
    )
    line, _ = lines(caplog, "chat")
    assert records[0].attempts == ()
    assert records[0].why == line["why"] == f"smart: no candidate; excluded: {excluded}"
    assert explained[2]["X-Nexus-Explain"] == request_json(records[0])["why"] == records[0].why
    assert "first_ms" not in line


@pytest.mark.parametrize("queue_timeout_ms", [0, 50])
async def test_failed_attempts_are_followed_by_the_excluded_instances(
    upstream: FakeUpstream, records: list[RequestRecord], queue_timeout_ms: int
) -> None:
    upstream.default = Reply(status=401)
    clock = FakeClock()
    instances = [make_instance(upstream, n, clock) for n in (1, 2)]
    async with serving(*instances, clock=clock, queue_timeout_ms=queue_timeout_ms) as served:
        served.gateway.recorder.observers.append(records.append)
        instances[1].default.park(30)
        await served.chat()
    (record,) = records
    assert record.why is not None
    assert record.why.startswith("Fake (Key #1): the key was refused (401); excluded: ")
    assert record.why.endswith("Fake (Key #2) rate limited 30s")


async def test_an_invalid_body_is_logged_by_its_field_and_not_its_content(
    upstream: FakeUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(make_instance(upstream)) as served:
        await served.chat({"messages": "a canary"})
        await served.chat(b"{a canary")
    by_field, by_syntax = lines(caplog, "chat")
    assert by_field["why"] == "`messages` is invalid"
    assert by_syntax["outcome"] == "invalid_request_error"
    assert "canary" not in caplog.text + str([vars(r) for r in caplog.records])


LOCKS: dict[str, Any] = {"gateway_keys": (Secret("a-caller"),), "admin_token": Secret("an-admin")}
KEY = "Authorization: Bearer a-caller"
REFUSED = [
    (request("POST /v1/chat/completions"), 401, "POST", "/v1/chat/completions", "invalid_api_key"),
    (request("GET /.env?key=canary", KEY), 404, "GET", "/.env", "unknown_path"),
    (request("PUT /v1/models", KEY), 405, "PUT", "/v1/models", "method_not_allowed"),
    (request("GET /%0a%1b%5b2J"), 404, "GET", "/\n\x1b[2J", "unknown_path"),
]


@pytest.mark.parametrize(("sent", "status", "method", "path", "reason"), REFUSED)
async def test_a_request_refused_before_its_endpoint_has_one_line(
    upstream: FakeUpstream,
    caplog: pytest.LogCaptureFixture,
    sent: bytes,
    status: int,
    method: str,
    path: str,
    reason: str,
) -> None:
    async with serving(make_instance(upstream), **LOCKS) as served:
        assert (await raw(served.url, sent))[0] == status
    (line,) = lines(caplog, "refused")
    assert line.pop("id").startswith("req-")
    fields = {"method": method, "path": path, "reason": reason, "peer": "127.0.0.1"}
    assert line == {"level": "INFO", "status": status, **fields}
    assert len(caplog.records) == 1
    assert "canary" not in str([vars(r) for r in caplog.records])


async def test_a_request_refused_by_its_endpoint_has_one_line(
    upstream: FakeUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(make_instance(upstream)) as served:
        await served.chat({})
        async with served.session.get(served.url + "/v1/models") as answer:
            assert answer.status == 200
    assert len(lines(caplog, "chat")) == len(caplog.records) == 1


async def fail(served: Served, times: int) -> None:
    for _ in range(times):
        await served.chat(headers=ROUND)


@pytest.mark.usefixtures("each_way")
async def test_a_circuit_is_logged_when_it_opens_and_when_it_closes(
    upstream: FakeUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    clock = FakeClock()
    shaky, sound = (make_instance(upstream, n, clock) for n in (1, 2))
    upstream.defaults[KEYS[0]] = Reply(status=500)
    async with serving(shaky, sound, clock=clock) as served:
        await fail(served, 6)
        for _ in range(3):  # probes that fail
            clock.advance(60)
            await fail(served, 2)
        (opened,) = lines(caplog, "circuit opened")
        assert opened.pop("id") in {line["id"] for line in lines(caplog, "chat")}
        fields = {"on": shaky.name, "failures": 3, "probe_in_s": 60, "why": "answered 500"}
        assert opened == {"level": "WARNING", **fields}
        assert not lines(caplog, "circuit closed")
        del upstream.defaults[KEYS[0]]
        clock.advance(60)
        await fail(served, 4)
    assert len(lines(caplog, "circuit opened")) == 1
    (closed,) = lines(caplog, "circuit closed")
    assert (closed["level"], closed["on"]) == ("INFO", shaky.name)


@pytest.mark.parametrize("stream", [True, False])
async def test_circuits_are_logged_for_broken_streams_and_without_streams(
    upstream: FakeUpstream, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    clock = FakeClock()
    upstream.default = Reply(cut_after=1) if stream else Reply(status=500)
    async with serving(make_instance(upstream, clock=clock), clock=clock, max_attempts=1) as served:
        for _ in range(3):
            await served.chat(stream=stream)
        (opened,) = lines(caplog, "circuit opened")
        assert opened["why"] == (CUT if stream else "answered 500")
        upstream.default = Reply()
        clock.advance(60)
        await served.chat(stream=stream)
    assert len(lines(caplog, "circuit closed")) == 1


@pytest.mark.usefixtures("each_way")
async def test_a_cancelled_probe_is_followed_by_the_line_of_the_closed_circuit(
    upstream: FakeUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    clock = FakeClock()
    upstream.default = Reply(status=500)
    shaky = make_instance(upstream, clock=clock)
    async with serving(shaky, clock=clock, max_attempts=1) as served:
        await fail(served, 3)
        assert len(lines(caplog, "circuit opened")) == 1
        upstream.default = Reply(hang_after=1)
        clock.advance(60)
        asking = asyncio.create_task(served.chat())
        await until(lambda: shaky.default.breaker.state() is State.CLOSED)
        asking.cancel()
        await until(lambda: not shaky.in_flight)
        assert not lines(caplog, "circuit closed")
        upstream.default = Reply()
        await served.chat()
    assert len(lines(caplog, "circuit closed")) == 1


async def test_a_span_has_the_reason_and_the_log_its_trace(
    upstream: FakeUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    spans, instance = Spans(), make_instance(upstream)
    upstream.default = BREAKS[CUT]
    async with traced(spans, instance, max_attempts=1) as served:
        await served.chat(headers={"traceparent": SAMPLED})
        broken, (attempt,) = await spans.of(2)
        spans.memory.clear()
        instance.park_bad_key()
        await served.chat()
        unserved, _ = await spans.of(1)
        await served.chat(headers={"traceparent": UNSAMPLED})
    assert broken.status.status_code is unserved.status.status_code is StatusCode.ERROR
    assert broken.status.description == f"Fake (Key #1): {CUT}"
    assert attempt.status.description == CUT
    reason = "smart: no candidate; excluded: Fake (Key #1) key refused 600s"
    assert unserved.status.description == (unserved.attributes or {})["nexus.why"] == reason
    first, second, unsampled = lines(caplog, "chat")
    assert first["trace_id"] == TRACE
    assert second["trace_id"] == f"{unserved.context.trace_id:032x}"
    assert "trace_id" not in unsampled


async def test_each_line_about_a_request_has_its_trace(
    upstream: FakeUpstream, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG, logger="nexus_gateway")
    upstream.default = Reply(status=500)
    async with traced(Spans(), make_instance(upstream), max_attempts=1) as served:
        for _ in range(3):
            await served.chat(headers={"traceparent": SAMPLED})
    gateway_lines = [r for r in caplog.records if r.name == "nexus_gateway"]
    assert {r.message.partition(":")[0] for r in gateway_lines} == {
        *("attempt", "attempt failed", "circuit opened", "chat")
    }
    assert {vars(r)["fields"]["trace_id"] for r in gateway_lines} == {TRACE}


async def test_a_cancelled_request_is_logged_with_its_reason(
    upstream: FakeUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    upstream.script(Reply(status=500), key=KEYS[0])
    upstream.defaults[KEYS[1]] = Reply(hang=True)
    async with serving(make_instance(upstream), make_instance(upstream, 2)) as served:
        asking = asyncio.create_task(served.chat(headers=ROUND))
        await until(lambda: upstream.hits(KEYS[1]))
        asking.cancel()
        await until(lambda: lines(caplog, "chat"))
    (line,) = lines(caplog, "chat")
    assert (line["status"], line["outcome"]) == (499, "cancelled")
    assert line["why"] == "Fake (Key #1): answered 500"
