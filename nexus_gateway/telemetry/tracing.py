"""Spans: one for each request, and a child for each attempt.

A request is a SERVER span by OpenTelemetry's conventions for HTTP, an attempt a CLIENT span by
those for generative AI, so that a backend that knows them shows models, tokens and times, and
counts no token twice. Our own attributes begin with `nexus.`. A span holds no part of a
conversation and no key. This module is imported only if traces are on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from multidict import CIMultiDictProxy
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind, StatusCode, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from nexus_gateway import __version__
from nexus_gateway.provider import InProcess, Outcome, Verdict
from nexus_gateway.proxy.record import MAX_MODEL, RequestRecord
from nexus_gateway.routing.attempts import Attempt
from nexus_gateway.telemetry import semconv
from nexus_gateway.wire.usage import parse_usage

logger = logging.getLogger("nexus_gateway")

# What the W3C asks everyone to pass on, and no more: an upstream may refuse longer headers.
MAX_HEADER_CHARS = 512
# These two log a caller's text, as often as it is malformed.
for _name in ("opentelemetry.trace.span", "opentelemetry.trace.propagation.tracecontext"):
    logging.getLogger(_name).disabled = True


class _RequestHeaders(Getter[CIMultiDictProxy[str]]):
    """Reads a request's headers; of several `traceparent` or of long values, none counts."""

    def get(self, carrier: CIMultiDictProxy[str], key: str) -> list[str] | None:
        values = carrier.getall(key, [])
        if key == "traceparent" and len(values) > 1:
            return None
        return values if values and len(",".join(values)) <= MAX_HEADER_CHARS else None

    def keys(self, carrier: CIMultiDictProxy[str]) -> list[str]:
        return list(carrier)


_PROPAGATOR = TraceContextTextMapPropagator()
_GETTER = _RequestHeaders()


class Tracing:
    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("nexus_gateway", __version__)

    def begin(self, headers: CIMultiDictProxy[str], endpoint: str, path: str) -> Trace:
        """Begin the span of a request that has just arrived, below the caller's if it names one."""
        attributes = {"http.request.method": "POST", "http.route": path, "url.path": path}
        # An empty context: no span that may be current in this process is the parent.
        context = _PROPAGATOR.extract(headers, Context(), _GETTER)
        span = self._tracer.start_span(f"POST {path}", context, SpanKind.SERVER, attributes)
        return Trace(self._tracer, span, semconv.operation_of(endpoint))


class Trace:
    """The span of a request (a `proxy.record.Trace`)."""

    def __init__(self, tracer: trace.Tracer, span: trace.Span, operation: str) -> None:
        self._tracer = tracer
        self._span = span
        self._operation = operation
        context = span.get_span_context()
        self.trace_id = format_trace_id(context.trace_id) if context.trace_flags.sampled else ""

    def attempt(self, attempt: Attempt, *, stream: bool) -> AttemptSpan:
        instance, model = attempt.instance, attempt.model[:MAX_MODEL]
        if not self._span.is_recording():
            return AttemptSpan(self._span)
        attributes = semconv.instance_attributes(instance, self._operation)
        attributes["gen_ai.request.model"] = model
        if stream:
            attributes["gen_ai.request.stream"] = True
        name, context = f"{self._operation} {model}", set_span_in_context(self._span, Context())
        is_local = isinstance(instance.provider, InProcess)
        kind = SpanKind.INTERNAL if is_local else SpanKind.CLIENT
        return AttemptSpan(self._tracer.start_span(name, context, kind, attributes))

    def end(self, record: RequestRecord) -> None:
        if self._span.is_recording():
            self._span.set_attributes(semconv.request_attributes(record))
            if record.status >= 500 or record.outcome == "failure":
                self._span.set_attribute("error.type", record.outcome or str(record.status))
                self._span.set_status(StatusCode.ERROR, record.why or "")
            self._span.end()


class AttemptSpan:
    """The span of an attempt (a `routing.attempts.Span`).

    If the request is not sampled, it is the request's own, which records nothing: the upstream
    still gets the trace's headers.
    """

    def __init__(self, span: trace.Span) -> None:
        self._span = span
        self._started_s = time.monotonic()
        headers: dict[str, str] = {}
        _PROPAGATOR.inject(headers, set_span_in_context(span, Context()))
        self.headers: Mapping[str, str] = headers

    def first_content(self) -> None:
        if self._span.is_recording():
            waited_s = time.monotonic() - self._started_s
            self._span.set_attribute("gen_ai.response.time_to_first_chunk", waited_s)

    def end(self, verdict: Verdict, usage: Mapping[str, Any]) -> None:
        if not self._span.is_recording():
            return
        try:
            self._span.set_attributes(semconv.usage_attributes(parse_usage(usage)))
            self._span.set_attribute("nexus.outcome", verdict.outcome.value)
            if verdict.outcome not in (Outcome.SUCCESS, Outcome.CANCELLED):
                self._span.set_attribute("error.type", semconv.error_type(verdict))
                self._span.set_status(StatusCode.ERROR, verdict.reason)
            self._span.end()
        except Exception:  # the attempt's own end must go on
            logger.exception("a span could not be ended")
