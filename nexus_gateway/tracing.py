"""Spans: one for each request, and a child for each attempt.

A request's is a SERVER span by OpenTelemetry's conventions for HTTP, an attempt's a CLIENT span by
those for generative AI, so that a backend that knows them shows models, tokens and times, and
counts no token twice. What is our own is called `nexus.…`. No word of a conversation is in them,
and no key. Imported only where traces are on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)
from opentelemetry.trace import Span as OtelSpan

from nexus_gateway import __version__, trace_context
from nexus_gateway.classify import Outcome, Verdict
from nexus_gateway.instance import Instance
from nexus_gateway.lease import Lease
from nexus_gateway.provider import InProcess
from nexus_gateway.record import RequestRecord

logger = logging.getLogger("nexus_gateway")
Attributes = dict[str, Any]

# Endpoints by OpenTelemetry's names, where it has one; the others keep ours.
_OPERATIONS = {
    "messages": "chat",
    "responses": "chat",
    "completions": "text_completion",
    "transcriptions": "transcription",
}
# Providers by OpenTelemetry's names where ours differ.
_PROVIDERS = {
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "xai": "x_ai",
    "azure": "azure.ai.openai",
}
_PORTS = {"http": 80, "https": 443}


class Tracing:
    """Makes spans.

    Args:
        provider: takes them.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("nexus_gateway", __version__)
        self._known: dict[tuple[str, str], Attributes] = {}

    def begin(self, headers: Any, endpoint: str, path: str) -> Trace:
        """Begin the span of a request that has just come.

        Args:
            headers: the caller's, a multidict.
            endpoint: by which door it came.
            path: of that door.
        """
        parent = None
        if trace_context.TRACEPARENT in headers:
            parent = trace_context.read(
                headers.getall(trace_context.TRACEPARENT),
                headers.getall(trace_context.TRACESTATE, ()),
            )
        about = {"http.request.method": "POST", "http.route": path, "url.path": path}
        # A context of its own: whatever runs in this process, nobody else's span is its parent.
        above = Context() if parent is None else _calling(parent)
        span = self._tracer.start_span(f"POST {path}", above, SpanKind.SERVER, about)
        return Trace(self, span, _OPERATIONS.get(endpoint, endpoint))

    def attempt(self, trace: Trace, lease: Lease, stream: bool) -> AttemptSpan:
        """Begin the span of an attempt."""
        instance, model = lease.instance, lease.model
        kind = SpanKind.CLIENT
        if isinstance(instance.provider, InProcess):
            kind = SpanKind.INTERNAL
        name = f"{trace.operation} {model}"
        about = {**self._of(instance, trace.operation), "gen_ai.request.model": model}
        if stream:
            about["gen_ai.request.stream"] = True
        return AttemptSpan(self._tracer.start_span(name, trace.context, kind, about))

    def _of(self, instance: Instance, operation: str) -> Attributes:
        """Return what all attempts of an instance have in common."""
        known = self._known.get((instance.name, operation))
        if known is None:
            known = self._known[(instance.name, operation)] = _about(instance, operation)
        return known


def _calling(parent: trace_context.Parent) -> Context:
    trace_id, span_id, flags, state = parent
    named = SpanContext(trace_id, span_id, True, TraceFlags(flags), TraceState(list(state)))
    return set_span_in_context(NonRecordingSpan(named), Context())


def _about(instance: Instance, operation: str) -> Attributes:
    own = instance.provider_name
    found: Attributes = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": _PROVIDERS.get(own, own),
        "nexus.instance": instance.name,
    }
    try:
        address = urlsplit(instance.account.base_url)
        if address.hostname:
            found["server.address"] = address.hostname
            found["server.port"] = address.port or _PORTS.get(address.scheme, 443)
    except ValueError:
        pass  # an address that cannot be read fails where it is used, and says so there
    return found


class Trace:
    """The span of a request (a `handlers.gateway.Trace`)."""

    def __init__(self, tracing: Tracing, span: OtelSpan, operation: str) -> None:
        self.operation = operation
        self.context = set_span_in_context(span, Context())
        self._tracing = tracing
        self._span = span

    def attempt(self, lease: Lease, stream: bool) -> AttemptSpan:
        """Begin the span of an attempt, below this one."""
        return self._tracing.attempt(self, lease, stream)

    def end(self, record: RequestRecord) -> None:
        """End it with what became of the request (a `record.Observer`)."""
        span = self._span
        if not span.is_recording():
            return
        span.set_attributes(_of_record(record))
        if record.status >= 500 or record.outcome == "failure":
            span.set_attribute("error.type", record.outcome or str(record.status))
            span.set_status(Status(StatusCode.ERROR))
        span.end()


def _of_record(record: RequestRecord) -> Attributes:
    known: Attributes = {
        "http.response.status_code": record.status,
        "nexus.request.id": record.id,
        "nexus.request.model": record.asked_model,
        "nexus.policy": record.policy,
        "nexus.caller": record.caller,
        "nexus.instance": record.instance,
        "nexus.attempts": len(record.attempts),
        "nexus.outcome": record.outcome,
        "nexus.hedged": record.hedged,
        "nexus.resumed": record.resumed,
    }
    return {name: value for name, value in known.items() if value or value == 0}


class AttemptSpan:
    """The span of an attempt (a `span.Span`)."""

    def __init__(self, span: OtelSpan) -> None:
        context = span.get_span_context()
        state = tuple(context.trace_state.items())
        own = (context.trace_id, context.span_id, int(context.trace_flags), state)
        self.headers: Mapping[str, str] = trace_context.write(trace_context.Parent(*own))
        self._span = span
        self._more: Attributes = {}
        self._began_s = time.perf_counter()

    def first_content(self) -> None:
        """Note that a stream has its first content."""
        took_s = time.perf_counter() - self._began_s
        self._more["gen_ai.response.time_to_first_chunk"] = round(took_s, 6)

    def used(self, usage: Mapping[str, Any]) -> None:
        """Note what the answer used, in OpenAI's shape."""
        for name, value in _tokens(usage):
            if isinstance(value, int):
                self._more[name] = value

    def end(self, verdict: Verdict) -> None:
        """Note how it ended."""
        try:
            if self._span.is_recording():
                self._end(verdict)
        except Exception:  # the lease that ends with it has more to do
            logger.exception("a span could not be ended")

    def _end(self, verdict: Verdict) -> None:
        outcome = verdict.outcome
        self._more["nexus.outcome"] = outcome.value
        if verdict.status:
            self._more["http.response.status_code"] = verdict.status
        if outcome is not Outcome.SUCCESS and outcome is not Outcome.CANCELLED:
            self._more["error.type"] = error_type(verdict)
            self._span.set_status(Status(StatusCode.ERROR, verdict.reason))
        self._span.set_attributes(self._more)
        self._span.end()


def error_type(verdict: Verdict) -> str:
    """Name a failure by its status, `timeout`, or its outcome: few words, for grouping."""
    if verdict.status:
        return str(verdict.status)
    late = verdict.reason.startswith(("no first token", "no answer"))
    return "timeout" if late else verdict.outcome.value


def _tokens(usage: Mapping[str, Any]) -> list[tuple[str, Any]]:
    asked, answered = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
    found = [
        ("gen_ai.usage.input_tokens", usage.get("prompt_tokens")),
        ("gen_ai.usage.output_tokens", usage.get("completion_tokens")),
    ]
    if isinstance(asked, Mapping):
        found.append(("gen_ai.usage.cache_read.input_tokens", asked.get("cached_tokens")))
    if isinstance(answered, Mapping):
        found.append(("gen_ai.usage.reasoning.output_tokens", answered.get("reasoning_tokens")))
    return found
