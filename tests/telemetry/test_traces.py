"""The spans of a request and its attempts, and the trace headers of each attempt."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from collector import collecting
from fakes import HELLO, KEYS, Other, make_instance, serving
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode
from spans import CALLER, SAMPLED, TRACE, UNSAMPLED, Spans, traced

from nexus_gateway import __version__
from nexus_gateway.secret import Secret
from nexus_gateway.telemetry import export
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream

ROUND = {"X-Routing-Mode": "round-robin"}
both_ways = pytest.mark.usefixtures("each_way")


@pytest.fixture
def spans() -> Spans:
    return Spans()


def upstream_traceparents(upstream: FakeUpstream) -> list[str]:
    return [r.headers["traceparent"] for r in upstream.requests]


def parent_of(span: ReadableSpan) -> str:
    trace_id, span_id, flags = span.context.trace_id, span.context.span_id, span.context.trace_flags
    assert flags & 1
    return f"00-{trace_id:032x}-{span_id:016x}-{flags:02x}"


@both_ways
@pytest.mark.parametrize("stream", [True, False])
async def test_a_request_and_its_attempt_are_spans(
    upstream: FakeUpstream, spans: Spans, stream: bool
) -> None:
    async with traced(spans, make_instance(upstream)) as served:
        head = {"X-Request-Id": "mine", "traceparent": SAMPLED, "tracestate": "a=1, b@c=x y"}
        body = {**HELLO, "model": "fake", "stream": stream}
        if stream:
            body["stream_options"] = {"include_usage": True}
        status, _, _ = await served.chat(body, headers=head)
        server, (attempt,) = await spans.of(2)
    assert status == 200
    assert (server.name, server.kind) == ("POST /v1/chat/completions", SpanKind.SERVER)
    assert (server.parent.span_id, server.parent.is_remote) == (int(CALLER, 16), True)
    attributes = dict(server.attributes or {})
    assert attributes["http.response.status_code"] == 200
    assert attributes["nexus.request.id"] == "mine"
    assert attributes["nexus.request.model"] == "fake"
    assert attributes["nexus.outcome"] == "success"
    # Otherwise tokens would count twice.
    assert not [name for name in attributes if name.startswith("gen_ai.")]

    assert (attempt.name, attempt.kind) == ("chat fake-large", SpanKind.CLIENT)
    assert attempt.context.trace_id == int(TRACE, 16)
    attributes = dict(attempt.attributes or {})
    assert attributes["gen_ai.operation.name"] == "chat"
    assert attributes["gen_ai.provider.name"] == "fake"
    assert attributes["gen_ai.request.model"] == "fake-large"
    assert attributes["gen_ai.usage.input_tokens"] > 0
    assert attributes["gen_ai.usage.output_tokens"] > 0
    assert attributes["server.address"] == "127.0.0.1"
    assert f":{attributes['server.port']}/" in upstream.base_url
    assert (attributes.get("gen_ai.response.time_to_first_chunk", 0) > 0) is stream
    assert attempt.status.status_code is StatusCode.UNSET

    received = upstream.requests[0]
    assert upstream_traceparents(upstream) == [parent_of(attempt)]
    assert received.headers["tracestate"] == "a=1,b@c=x y"
    assert received.body["messages"] == HELLO["messages"]  # the body is unchanged


@both_ways
async def test_a_fail_over_is_two_attempt_spans(upstream: FakeUpstream, spans: Spans) -> None:
    upstream.defaults[KEYS[0]] = Reply(status=500)
    instances = make_instance(upstream), make_instance(upstream, 2, provider=Other, name="mistral")
    async with traced(spans, *instances) as served:
        await served.chat(headers=ROUND)
        server, (failed, succeeded) = await spans.of(3)
    assert (server.attributes or {})["nexus.attempts"] == 2
    assert server.status.status_code is StatusCode.UNSET
    assert (failed.attributes or {})["error.type"] == "500"
    assert (failed.attributes or {})["nexus.instance"] == "Fake (Key #1)"
    assert (failed.status.status_code, failed.status.description) == (
        StatusCode.ERROR,
        "answered 500",
    )
    assert (succeeded.attributes or {})["gen_ai.provider.name"] == "mistral_ai"
    assert succeeded.name == "chat other-text"
    assert failed.end_time <= succeeded.start_time
    assert upstream_traceparents(upstream) == [parent_of(failed), parent_of(succeeded)]


@both_ways
async def test_a_request_without_a_candidate_has_an_error_span(
    upstream: FakeUpstream, spans: Spans
) -> None:
    upstream.default = Reply(hang=True)
    async with traced(spans, make_instance(upstream), response_timeout_ms=30) as served:
        status, _, headers = await served.chat()
        # Not as many as reached the upstream: on a slow machine, one may time out on its way.
        server, attempts = await spans.of(1 + int(headers["X-Nexus-Attempts"]))
    assert status == 503
    assert server.status.status_code is StatusCode.ERROR
    assert (server.attributes or {})["error.type"]
    assert (attempts[0].attributes or {})["error.type"] == "timeout"


@both_ways
async def test_a_broken_stream_has_error_spans(upstream: FakeUpstream, spans: Spans) -> None:
    upstream.default = Reply(cut_after=2, delay_s=0.01)
    async with traced(spans, make_instance(upstream)) as served:
        assert (await served.chat())[0] == 200
        server, (attempt,) = await spans.of(2)
    assert server.status.status_code is StatusCode.ERROR
    assert (attempt.attributes or {})["error.type"] == "failure"
    assert (attempt.attributes or {})["gen_ai.usage.output_tokens"] > 0


@both_ways
async def test_a_disconnected_caller_is_no_error(upstream: FakeUpstream, spans: Spans) -> None:
    upstream.default = Reply(hang_after=1)
    async with traced(spans, make_instance(upstream)) as served:
        url = served.url + "/v1/chat/completions"
        async with served.session.post(url, json={**HELLO, "stream": True}) as answer:
            await answer.content.readany()
            answer.close()
        server, (attempt,) = await spans.of(2)
    assert (server.attributes or {})["http.response.status_code"] == 499
    for span in (server, attempt):
        assert span.status.status_code is StatusCode.UNSET
        assert (span.attributes or {})["nexus.outcome"] == "cancelled"


async def test_a_losing_hedge_has_a_cancelled_span(upstream: FakeUpstream, spans: Spans) -> None:
    upstream.defaults[KEYS[0]] = Reply(hang=True)
    async with traced(spans, make_instance(upstream), make_instance(upstream, 2)) as served:
        for instance in served.instances:
            for _ in range(30):
                instance.health.observe_first_token(5)
        served.gateway.scheduler.hedges._saved = 5.0
        await served.chat(headers={**ROUND, "X-Nexus-Hedge": "true"})
        server, (lost, won) = await spans.of(3)
    assert (server.attributes or {})["nexus.hedged"] is True
    assert (lost.attributes or {})["nexus.outcome"] == "cancelled"
    assert (won.attributes or {})["nexus.outcome"] == "success"
    assert won.start_time < lost.end_time


async def test_a_resumed_answer_has_a_span_for_each_part(
    upstream: FakeUpstream, spans: Spans
) -> None:
    upstream.script(Reply(cut_after=2, delay_s=0.01), key=KEYS[0])
    instances = make_instance(upstream), make_instance(upstream, 2)
    async with traced(spans, *instances, resume=True) as served:
        await served.chat(headers=ROUND)
        server, parts = await spans.of(3)
    assert (server.attributes or {})["nexus.resumed"] == 1
    assert [(p.attributes or {})["nexus.outcome"] for p in parts] == ["failure", "success"]
    tokens = [(p.attributes or {})["gen_ai.usage.output_tokens"] for p in parts]
    assert 0 < tokens[0] < tokens[1]


@both_ways
async def test_an_unsampled_trace_is_propagated_without_spans(
    upstream: FakeUpstream, spans: Spans
) -> None:
    async with traced(spans, make_instance(upstream)) as served:
        assert (await served.chat(headers={"traceparent": UNSAMPLED}))[0] == 200
    assert not spans.memory.get_finished_spans()
    (sent,) = upstream_traceparents(upstream)
    assert sent.startswith(f"00-{TRACE}-")
    assert sent.endswith("-00")
    assert CALLER not in sent


@pytest.mark.proves("S-17")
@both_ways
@pytest.mark.parametrize(
    "bad",
    [
        "",
        "no",
        f"00-{'0' * 32}-{CALLER}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{CALLER}-01",
        f"00-{TRACE}-{CALLER}-01-more",
        f"00-{TRACE.upper()}-{CALLER}-01",
        f"cc-{TRACE}-{CALLER}-01-{'x' * 600}",
    ],
)
async def test_an_invalid_parent_is_dropped_silently(
    upstream: FakeUpstream, spans: Spans, bad: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with traced(spans, make_instance(upstream)) as served:
        head = {"traceparent": bad, "tracestate": "a=1"}
        assert (await served.chat(headers=head))[0] == 200
        server, _ = await spans.of(2)
    assert server.parent is None
    assert TRACE not in upstream_traceparents(upstream)[0].lower()
    assert "tracestate" not in upstream.requests[0].headers
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.proves("S-17")
async def test_a_state_is_sent_complete_or_not_at_all(upstream: FakeUpstream, spans: Spans) -> None:
    states = {
        "a=1,,b=2": "a=1,b=2",
        "a=1,a=2": None,
        "A=1": None,
        "a=\u00fc": None,
        "a=" + "x" * 600: None,
        ",".join(f"k{n}=v" for n in range(33)): None,
    }
    async with traced(spans, make_instance(upstream)) as served:
        for state, expected in states.items():
            await served.chat(headers={"traceparent": SAMPLED, "tracestate": state})
            assert upstream.requests[-1].headers.get("tracestate") == expected


@pytest.mark.proves("S-17")
@both_ways
async def test_without_a_collector_no_trace_header_is_sent(upstream: FakeUpstream) -> None:
    async with serving(make_instance(upstream)) as served:
        await served.chat(headers={"traceparent": SAMPLED, "tracestate": "a=1"})
    names = {name.lower() for name in upstream.requests[0].headers}
    assert not names & {"traceparent", "tracestate", "baggage"}


async def test_a_span_contains_no_text_and_no_key(upstream: FakeUpstream, spans: Spans) -> None:
    upstream.default = Reply(text="the secret answer")
    secret = Secret("a-gateway-key")
    async with traced(spans, make_instance(upstream), gateway_keys=(secret,)) as served:
        head = {"Authorization": "Bearer a-gateway-key", "traceparent": SAMPLED}
        body = {"messages": [{"role": "user", "content": "the secret question"}], "stream": True}
        await served.chat(body, headers=head)
        server, attempts = await spans.of(2)
    written = " ".join(span.to_json() for span in (server, *attempts))
    assert "key-1" in written
    for word in ("secret question", "secret answer", "a-gateway-key", KEYS[0]):
        assert word not in written


@pytest.mark.parametrize(
    ("path", "body", "operation"),
    [
        ("/v1/messages", {**HELLO, "max_tokens": 9}, "chat"),
        ("/v1/responses", {"input": "Hello!"}, "chat"),
        ("/v1/embeddings", {"input": "Hello!", "model": "fake-large"}, "embeddings"),
    ],
)
async def test_spans_name_the_endpoint_and_operation(
    upstream: FakeUpstream, spans: Spans, path: str, body: dict[str, Any], operation: str
) -> None:
    async with traced(spans, make_instance(upstream)) as served:
        await served.post(path, body)
        server, attempts = await spans.of(1 + upstream.hits())
    assert server.name == f"POST {path}"
    for attempt in attempts:
        assert attempt.name.startswith(f"{operation} ")


class Collector:
    """An OTLP receiver on loopback."""

    def __init__(self) -> None:
        self.url = ""
        self.delay_s = 0.0
        self.status = 200
        self.spans: list[Any] = []
        self.services: set[str] = set()
        self.versions: set[str] = set()
        self.calls = 0

    async def take(self, request: web.Request) -> web.Response:
        self.calls += 1
        await asyncio.sleep(self.delay_s)
        traces = ExportTraceServiceRequest.FromString(await request.read())
        for resource in traces.resource_spans:
            attributes = {a.key: a.value.string_value for a in resource.resource.attributes}
            self.services.add(attributes["service.name"])
            self.versions.add(attributes["service.version"])
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return web.Response(status=self.status)


@pytest.fixture
async def collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collector]:
    receiver = Collector()
    async with collecting(receiver.take) as receiver.url:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        yield receiver


@pytest.fixture(autouse=True)
def sdk_silent_afterwards() -> Iterator[None]:
    yield
    sdk_logger = logging.getLogger("opentelemetry")
    # A thread of the SDK may still log.
    sdk_logger.handlers[:], sdk_logger.propagate = [logging.NullHandler()], True


def settings_for(collector: Collector) -> dict[str, str]:
    return {"otel_exporter_otlp_endpoint": collector.url}


async def test_spans_are_exported_by_the_time_of_shutdown(
    upstream: FakeUpstream, collector: Collector
) -> None:
    async with serving(make_instance(upstream), **settings_for(collector)) as served:
        await served.chat(headers={"traceparent": SAMPLED})
    by_name = {span.name: span for span in collector.spans}
    server, attempt = by_name["POST /v1/chat/completions"], by_name["chat fake-large"]
    assert collector.services == {"nexus-gateway"}
    assert collector.versions == {__version__}
    assert (server.trace_id.hex(), server.parent_span_id.hex()) == (TRACE, CALLER)
    assert attempt.parent_span_id == server.span_id
    assert upstream_traceparents(upstream) == [f"00-{TRACE}-{attempt.span_id.hex()}-01"]


async def test_the_otel_variables_apply(
    upstream: FakeUpstream, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "a-service")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.version=a-version")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    async with serving(make_instance(upstream), **settings_for(collector)) as served:
        await served.chat()
        await served.chat(headers={"traceparent": SAMPLED})
    assert (collector.services, collector.versions) == ({"a-service"}, {"a-version"})
    assert len(collector.spans) == 2


@pytest.mark.parametrize(
    ("name", "value", "warned"),
    [
        ("OTEL_SDK_DISABLED", "true", False),
        ("OTEL_TRACES_EXPORTER", "none", False),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", True),
        ("OTEL_BSP_SCHEDULE_DELAY", "-1", True),
    ],
)
async def test_traces_can_be_disabled(
    upstream: FakeUpstream,
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    value: str,
    warned: bool,
) -> None:
    monkeypatch.setenv(name, value)
    async with serving(make_instance(upstream), **settings_for(collector)) as served:
        assert served.gateway.tracing is None
        assert (await served.chat())[0] == 200
    assert not collector.calls
    assert ("no traces: " in caplog.text) is warned


async def test_without_the_extra_a_warning_is_logged(
    upstream: FakeUpstream,
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace", None)
    async with serving(make_instance(upstream), **settings_for(collector)) as served:
        assert (await served.chat())[0] == 200
    assert "pip install '.[otel]'" in caplog.text


@pytest.mark.parametrize("problem", ["away", "silent", "refusing"])
async def test_a_failing_collector_affects_neither_requests_nor_exit(
    upstream: FakeUpstream,
    collector: Collector,
    problem: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(export, "FLUSH_S", 0.2)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "5")
    # No thread should outlive the test by much.
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.4")
    if problem == "away":
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    elif problem == "silent":
        collector.delay_s = 60
    else:
        collector.status = 400
    async with serving(make_instance(upstream), **settings_for(collector)) as served:
        for _ in range(5):
            assert (await served.chat())[0] == 200
            await asyncio.sleep(0.02)
    warnings = [r for r in caplog.records if "trace export is failing" in r.getMessage()]
    assert len(warnings) <= 1 if problem == "silent" else len(warnings) == 1
    assert logging.getLogger("opentelemetry").propagate is False


def test_warnings_of_the_sdk_are_rate_limited(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = SimpleNamespace(s=0.0)
    monkeypatch.setattr(export.time, "monotonic", lambda: now.s)
    handler = export._SdkLogHandler()
    for now.s in (0.0, 1.0, 59.0, 61.0):
        handler.emit(logging.makeLogRecord({"msg": "at url: /v1/traces?key=secret (away)"}))
    fields = [r.fields for r in caplog.records]  # type: ignore[attr-defined]
    assert fields == [
        {"why": "at url: /v1/traces?*** (away)", "since_then": None},
        {"why": "at url: /v1/traces?*** (away)", "since_then": 2},
    ]
    assert json.dumps(fields)
