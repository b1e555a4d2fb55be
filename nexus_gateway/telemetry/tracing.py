"""Spans: one for each request, and a child for each attempt.

A request's is a SERVER span by OpenTelemetry's conventions for HTTP, an attempt's a CLIENT span by
those for generative AI, so that a backend that knows them shows models, tokens and times, and
counts no token twice. What is our own is called `nexus.…`. No word of a conversation is in them,
and no key. Imported only where traces are on.

The W3C's trace context: how a caller says which trace a request belongs to.

What a caller sends is read strictly, and what goes up is written anew: never his own text. A
header that is not in order is as good as none, as the standard asks, and nobody is told of it.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping, Sequence
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

from nexus_gateway import __version__
from nexus_gateway.provider import InProcess, Outcome, Verdict
from nexus_gateway.proxy.record import MAX_MODEL, RequestRecord
from nexus_gateway.routing.attempts import Attempt, Span
from nexus_gateway.routing.instance import Instance
from nexus_gateway.telemetry.semconv import (
    Attributes,
    error_type,
    of_instance,
    of_tokens,
    operation_of,
    request_attributes,
)
from nexus_gateway.wire.usage import parse_usage

logger = logging.getLogger("nexus_gateway")

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
# Sampled, and random; a later version may mean something else by the others.
KNOWN_FLAGS = 0x03
MOST_MEMBERS = 32
LONGEST_STATE = 512
_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[!-~]*)?")
_KEY = re.compile(r"[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13}")
_VALUE = re.compile(r"[ -+\--<>-~]{0,255}[!-+\--<>-~]")


class Parent(NamedTuple):
    """A span of somebody else's.

    Args:
        trace_id: of its trace.
        span_id: its own.
        flags: those of KNOWN_FLAGS.
        state: what tracing systems on the way have to say, in pairs.
    """

    trace_id: int
    span_id: int
    flags: int
    state: tuple[tuple[str, str], ...] = ()


def read(parents: Sequence[str], states: Sequence[str]) -> Parent | None:
    """Read a caller's headers.

    Args:
        parents: the values of `traceparent`.
        states: the values of `tracestate`.

    Returns:
        The span that called; None where none is named, or not in order.
    """
    if len(parents) != 1 or len(parents[0]) > LONGEST_STATE:
        return None
    found = _PARENT.fullmatch(parents[0].strip())
    if found is None:
        return None
    version, trace, span, flags, more = found.groups()
    trace_id, span_id = int(trace, 16), int(span, 16)
    if version == "ff" or (version == "00" and more is not None) or not (trace_id and span_id):
        return None
    return Parent(trace_id, span_id, int(flags, 16) & KNOWN_FLAGS, _state(",".join(states)))


def _state(text: str) -> tuple[tuple[str, str], ...]:
    """Read the state; all of it is dropped where any is not in order."""
    if not text or len(text) > LONGEST_STATE:
        return ()
    pairs: dict[str, str] = {}
    for member in text.split(","):
        key, _, value = member.strip(" \t").partition("=")
        if not key and not value:
            continue
        if not _KEY.fullmatch(key) or not _VALUE.fullmatch(value) or key in pairs:
            return ()
        pairs[key] = value
    return tuple(pairs.items()) if len(pairs) <= MOST_MEMBERS else ()


def write(parent: Parent) -> dict[str, str]:
    """Write the headers that name a span as the caller."""
    trace, span, flags, state = parent
    head = {TRACEPARENT: f"00-{trace:032x}-{span:016x}-{flags & KNOWN_FLAGS:02x}"}
    if state:
        head[TRACESTATE] = ",".join(f"{key}={value}" for key, value in state)
    return head


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
        if TRACEPARENT in headers:
            parent = read(
                headers.getall(TRACEPARENT),
                headers.getall(TRACESTATE, ()),
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
        own = Parent(trace_id, self._ids.generate_span_id(), flags, state)
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
    own: Parent
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
        own: Parent,
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

    def attempt(self, attempt: Attempt, *, stream: bool) -> Span:
        """Begin the span of an attempt, below this one."""
        if not self.sampled:
            return Unsampled(write(self.own))
        return AttemptSpan(self, attempt.instance, attempt.model, stream)

    def end(self, record: RequestRecord) -> None:
        """End it with what became of the request (a `record.Observer`)."""
        if not self.sampled:
            return
        about, error = self._about, None
        about.update(request_attributes(record))
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

    def end(self, verdict: Verdict, usage: Mapping[str, Any]) -> None:
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
        self.headers: Mapping[str, str] = write(self._own)
        self._trace = trace
        self._instance = instance
        self._model = model[:MAX_MODEL]
        self._more: Attributes = {"gen_ai.request.stream": True} if stream else {}
        self._began_ns = time.time_ns()

    def first_content(self) -> None:
        """Note that a stream has its first content."""
        took_s = (time.time_ns() - self._began_ns) / 1e9
        self._more["gen_ai.response.time_to_first_chunk"] = took_s

    def end(self, verdict: Verdict, usage: Mapping[str, Any]) -> None:
        """Note how it ended."""
        try:
            self._more.update(of_tokens(parse_usage(usage)))
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
