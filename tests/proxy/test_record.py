"""The record of a request once it has ended."""

from __future__ import annotations

import asyncio

import pytest
from fakes import HELLO, KEYS, make_instance, serving
from records import attempt, ended

from nexus_gateway.proxy.context import RequestContext
from nexus_gateway.proxy.record import MAX_WHY, RequestRecord
from nexus_gateway.routing.attempts import Attempt, AttemptHistory
from nexus_gateway.secret import Secret
from nexus_gateway.telemetry.snapshot import request_json
from nexus_gateway.telemetry.timeline import Timelines
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream

ROUND = {"X-Routing-Mode": "round-robin"}


def context_of(*attempts: Attempt) -> RequestContext:
    """Return the context of a request with attempts that have ended."""
    history = AttemptHistory(attempts=list(attempts), begun=len(attempts))
    return RequestContext("chat", "", lambda: 0.001, 0.0, history)


async def test_a_record_has_all_fields_of_its_request(upstream: FakeUpstream) -> None:
    upstream.defaults[KEYS[0]] = Reply(status=500)
    records: list[RequestRecord] = []
    keys = (Secret("a-caller"), Secret("another"))
    async with serving(
        make_instance(upstream), make_instance(upstream, 2), gateway_keys=keys
    ) as served:
        served.gateway.recorder.observers.append(records.append)
        head = {**ROUND, "Authorization": "Bearer another", "X-Request-Id": "mine"}
        await served.chat({**HELLO, "model": "fake", "stream": True}, headers=head)
    (record,) = records
    assert (record.id, record.endpoint, record.caller) == ("mine", "chat", "key-2")
    assert (record.asked_model, record.model, record.stream) == ("fake", "fake-large", True)
    assert (record.instance, record.provider) == ("Fake (Key #2)", "fake")
    assert [(a.instance.name, a.outcome.value, a.status) for a in record.attempts] == [
        ("Fake (Key #1)", "failure", 500),
        ("Fake (Key #2)", "success", 200),
    ]
    assert record.attempts[0].reason == "answered 500"
    assert (record.status, record.outcome, record.policy) == (200, "success", "round-robin")
    assert 0 < record.upstream_ms <= record.first_ms <= record.total_ms
    assert record.tokens.completion


@pytest.mark.parametrize(
    ("reply", "status", "outcome", "attempts"),
    [
        (Reply(status=400), 400, "upstream_refused", ["refused"]),
        (Reply(status=429), 429, "rate_limit_exceeded", ["rate_limited"]),
        (Reply(status=500), 503, "no_candidate", ["failure"] * 3),
        (Reply(cut_after=2, delay_s=0.02), 200, "failure", ["failure"]),
    ],
)
async def test_each_end_has_its_outcome(
    upstream: FakeUpstream, reply: Reply, status: int, outcome: str, attempts: list[str]
) -> None:
    upstream.default = reply
    records: list[RequestRecord] = []
    async with serving(make_instance(upstream), max_attempts=3) as served:
        served.gateway.recorder.observers.append(records.append)
        await served.chat()
    assert (records[0].status, records[0].outcome) == (status, outcome)
    assert [a.outcome.value for a in records[0].attempts] == attempts
    assert records[0].answered is (status == 200)
    first_ms = request_json(records[0])["firstMs"]
    assert (first_ms is None) is (status != 200), (
        "without a response there is no time to the first byte"
    )
    assert records[0].failovers == [], "a retry at the same instance is no fail-over"


async def test_a_caller_that_leaves_is_recorded_as_cancelled(upstream: FakeUpstream) -> None:
    upstream.default = Reply(hang=True)
    records: list[RequestRecord] = []
    async with serving(make_instance(upstream)) as served:
        served.gateway.recorder.observers.append(records.append)
        asking = asyncio.create_task(served.chat())
        while not upstream.hits():  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.01)
        asking.cancel()
        while not records:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.01)
    assert (records[0].status, records[0].outcome) == (499, "cancelled")
    assert [a.outcome.value for a in records[0].attempts] == ["cancelled"]


async def test_a_failing_observer_does_not_affect_the_request(upstream: FakeUpstream) -> None:
    def fail(record: RequestRecord) -> None:
        raise RuntimeError

    records: list[RequestRecord] = []
    async with serving(make_instance(upstream)) as served:
        served.gateway.recorder.observers.extend([fail, records.append])
        assert (await served.chat())[0] == 200
    assert len(records) == 1


async def test_an_invalid_request_is_recorded_too(upstream: FakeUpstream) -> None:
    records: list[RequestRecord] = []
    async with serving(make_instance(upstream)) as served:
        served.gateway.recorder.observers.append(records.append)
        assert (await served.chat({"messages": 1}))[0] == 400
    assert (records[0].status, records[0].instance, records[0].attempts) == (400, "", ())


@pytest.mark.parametrize(
    ("cost", "bill"),
    [(0.125, 0.125), (0, 0.0), (-1, None), ("much", None), (1e9, None), (None, None), (True, None)],
)
def test_an_invalid_bill_is_unknown(cost: object, bill: float | None) -> None:
    context = context_of(attempt())
    context.history.attempts[0].usage = {"cost": cost}
    assert context.record(200, 0.0).billed_usd == bill


def test_the_reason_in_a_record_has_a_maximum_length() -> None:
    context = context_of()
    context.outcome, context.unavailable = "failure", "x" * 5000
    assert len(context.why() or "") == MAX_WHY


def test_only_the_tokens_of_a_resumed_response_are_known() -> None:
    details = {"prompt_tokens_details": {"cached_tokens": 3}, "cost": 1, "service_tier": 2}
    context = context_of(attempt(outcome="failure", reason="broke"), attempt())
    first, second = context.history.attempts
    first.usage = {"completion_tokens": 5}
    second.usage = {"prompt_tokens": 7, "completion_tokens": 9, "total_tokens": 16, **details}
    total = {"prompt_tokens": 7, "completion_tokens": 14, "total_tokens": 16}
    assert context.history.usage() == total
    record = context.record(200, 0.0)
    assert (record.resumed, record.billed_usd, record.tokens.cached) == (1, None, None)


@pytest.mark.parametrize(
    ("instances", "moved"),
    [("", ""), ("A", ""), ("AAA", ""), ("AB", "A"), ("AABA", "AB"), ("ABC", "AB")],
)
def test_a_fail_over_is_an_attempt_on_a_different_instance(instances: str, moved: str) -> None:
    attempts = tuple(attempt(name, "failure", "reset", 0, 1.0) for name in instances)
    record = ended(attempts=attempts, instance=instances[-1:], status=503)
    assert "".join(a.instance.name for a in record.failovers) == moved
    assert request_json(record)["failedOver"] is bool(moved)
    lines = Timelines()
    lines.observe(record)
    assert lines.as_json(0)[""][0][3] == len(moved), "as in the metrics"
