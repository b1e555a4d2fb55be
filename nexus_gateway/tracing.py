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
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from multidict import CIMultiDictProxy
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    format_trace_id,
    set_span_in_context,
)

from nexus_gateway import __version__, trace_context
from nexus_gateway.classify import Outcome, Verdict
from nexus_gateway.conventions import (
    Attributes,
    error_type,
    of_instance,
    of_record,
    of_tokens,
    operation_of,
)
from nexus_gateway.instance import Instance
from nexus_gateway.lease import Lease
from nexus_gateway.provider import InProcess
from nexus_gateway.record import LONGEST_MODEL, RequestRecord
from nexus_gateway.span import Span
from nexus_gateway.tokens import tokens_of

logger = logging.getLogger("nexus_gateway")
_SCOPE = InstrumentationScope("nexus_gateway", __version__)
# Whatever runs in this process, nobody else's span is the parent of one of ours.
_NOBODY = Context()


class Tracing:
    """Makes spans.

    They are made when they end, of what is known by then, and not by the SDK's tracer: that one
    keeps each span open for anybody to write into, which costs several times as much.

    Args:
        provider: says who we are, which traces are wanted, and how ids are made.
        processor: takes the spans.
    """

    def __init__(self, provider: TracerProvider, processor: SpanProcessor) -> None:
        self._sampler = provider.sampler
        self._ids = provider.id_generator
        self._resource = provider.resource
        self._processor = processor
        self._known: WeakKeyDictionary[Instance, dict[str, Attributes]] = WeakKeyDictionary()

    def begin(self, headers: CIMultiDictProxy[str], endpoint: str, path: str) -> Trace:
        """Begin the span of a request that has just come.

        Args:
            headers: the caller's.
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
        trace_id = self._ids.generate_trace_id() if parent is None else parent.trace_id
        above = None if parent is None else _span_context(*parent, is_remote=True)
        context = _NOBODY
        if above is not None:
            context = set_span_in_context(NonRecordingSpan(above), _NOBODY)
        name = f"POST {path}"
        wanted = self._sampler.should_sample(context, trace_id, name, SpanKind.SERVER, about)
        sampled = wanted.decision is Decision.RECORD_AND_SAMPLE
        flags = TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT
        state = tuple((wanted.trace_state or {}).items())
        if parent is not None:
            flags |= parent.flags & ~TraceFlags.SAMPLED
        own = trace_context.Parent(trace_id, self._ids.generate_span_id(), flags, state)
        about.update(wanted.attributes)
        return Trace(self, operation_of(endpoint), name, own, above, about)

    def span_id(self) -> int:
        """Make a span's id."""
        return self._ids.generate_span_id()

    def take(self, span: Made) -> None:
        """Make a span that has ended, and pass it on."""
        status = Status(StatusCode.UNSET if span.error is None else StatusCode.ERROR, span.error)
        self._processor.on_end(
            ReadableSpan(
                name=span.name,
                context=_span_context(*span.own),
                parent=span.above,
                resource=self._resource,
                attributes=span.about,
                kind=span.kind,
                status=status,
                start_time=span.began_ns,
                end_time=time.time_ns(),
                instrumentation_scope=_SCOPE,
            )
        )

    def of(self, instance: Instance, operation: str) -> Attributes:
        """Return what all attempts of an instance have in common."""
        known = self._known.setdefault(instance, {})
        if operation not in known:
            known[operation] = of_instance(instance, operation)
        return known[operation]


class Made(NamedTuple):
    """What a span is made of.

    Args:
        name: of the span.
        kind: of the span.
        own: its ids.
        above: its parent, None for none.
        began_ns: in Unix nanoseconds.
        about: its attributes.
        error: what went wrong, "" for what the attributes tell already; None for nothing.
    """

    name: str
    kind: SpanKind
    own: trace_context.Parent
    above: SpanContext | None
    began_ns: int
    about: Attributes
    error: str | None


def _span_context(
    trace_id: int,
    span_id: int,
    flags: int,
    state: tuple[tuple[str, str], ...],
    *,
    is_remote: bool = False,
) -> SpanContext:
    said = TraceState(list(state)) if state else None
    return SpanContext(trace_id, span_id, is_remote, TraceFlags(flags), said)


class Trace:
    """The span of a request (a `handlers.gateway.Trace`).

    Args:
        tracing: takes it.
        operation: what the request's attempts are called.
        name: of the span.
        own: its ids.
        above: the caller's span, None where none was named.
        about: what is known of it.

    Attributes:
        trace_id: for the log; "" where it is not sampled.
    """

    def __init__(
        self,
        tracing: Tracing,
        operation: str,
        name: str,
        own: trace_context.Parent,
        above: SpanContext | None,
        about: Attributes,
    ) -> None:
        self.tracing = tracing
        self.operation = operation
        self.own = own
        self.sampled = bool(own.flags & TraceFlags.SAMPLED)
        self.trace_id = format_trace_id(own.trace_id) if self.sampled else ""
        self._name = name
        self._above = above
        self._about = about
        self._began_ns = time.time_ns()

    def attempt(self, lease: Lease, stream: bool) -> Span:
        """Begin the span of an attempt, below this one."""
        if not self.sampled:
            return Unsampled(trace_context.write(self.own))
        return AttemptSpan(self, lease.instance, lease.model, stream)

    def end(self, record: RequestRecord) -> None:
        """End it with what became of the request (a `record.Observer`)."""
        if not self.sampled:
            return
        about, error = self._about, None
        about.update(of_record(record))
        if record.status >= 500 or record.outcome == "failure":
            about["error.type"] = record.outcome or str(record.status)
            error = record.why or ""
        made = (self._name, SpanKind.SERVER, self.own, self._above, self._began_ns, about, error)
        self.tracing.take(Made(*made))


class Unsampled:
    """An attempt that nobody wants to see (a `span.Span`); the upstream is told of the trace."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self.headers = headers

    def first_content(self) -> None:
        """Do nothing."""

    def used(self, usage: Mapping[str, Any]) -> None:
        """Do nothing."""

    def end(self, verdict: Verdict) -> None:
        """Do nothing."""


class AttemptSpan:
    """The span of an attempt (a `span.Span`).

    Args:
        trace: of its request.
        instance: who is asked.
        model: for what.
        stream: whether for a stream.
    """

    def __init__(self, trace: Trace, instance: Instance, model: str, stream: bool) -> None:
        self._own = trace.own._replace(span_id=trace.tracing.span_id())
        self.headers: Mapping[str, str] = trace_context.write(self._own)
        self._trace = trace
        self._instance = instance
        self._model = model[:LONGEST_MODEL]
        self._more: Attributes = {"gen_ai.request.stream": True} if stream else {}
        self._began_ns = time.time_ns()

    def first_content(self) -> None:
        """Note that a stream has its first content."""
        took_s = (time.time_ns() - self._began_ns) / 1e9
        self._more["gen_ai.response.time_to_first_chunk"] = took_s

    def used(self, usage: Mapping[str, Any]) -> None:
        """Note what the answer used, in OpenAI's shape."""
        self._more.update(of_tokens(tokens_of(usage)))

    def end(self, verdict: Verdict) -> None:
        """Note how it ended."""
        try:
            self._end(verdict)
        except Exception:  # the lease that ends with it has more to do
            logger.exception("a span could not be made")

    def _end(self, verdict: Verdict) -> None:
        trace, outcome, error = self._trace, verdict.outcome, None
        common = trace.tracing.of(self._instance, trace.operation)
        about = {**common, "gen_ai.request.model": self._model, **self._more}
        about["nexus.outcome"] = outcome.value
        if outcome is not Outcome.SUCCESS and outcome is not Outcome.CANCELLED:
            about["error.type"] = error_type(verdict)
            error = verdict.reason
        local = isinstance(self._instance.provider, InProcess)
        kind = SpanKind.INTERNAL if local else SpanKind.CLIENT
        above = _span_context(*trace.own)
        name = f"{trace.operation} {self._model}"
        trace.tracing.take(Made(name, kind, self._own, above, self._began_ns, about, error))
