"""The spans of a gateway's requests, kept in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fakes import Served, serving
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from waiting import until

from nexus_gateway.telemetry.tracing import Tracing

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{CALLER}-01", f"00-{TRACE}-{CALLER}-00"


class Spans:
    """What a gateway's requests left behind."""

    def __init__(self) -> None:
        self.memory = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.memory))
        self.tracing = Tracing(provider)

    async def of(self, count: int) -> tuple[ReadableSpan, list[ReadableSpan]]:
        """Wait for so many spans; return the request's and the attempts' in turn."""
        await until(lambda: len(self.memory.get_finished_spans()) >= count)
        spans = self.memory.get_finished_spans()
        assert len(spans) == count
        (server,) = [s for s in spans if s.kind is SpanKind.SERVER]
        attempts = sorted((s for s in spans if s is not server), key=lambda s: s.start_time)
        for attempt in attempts:
            assert attempt.parent.span_id == server.context.span_id
            assert attempt.context.trace_id == server.context.trace_id
            assert server.start_time <= attempt.start_time <= attempt.end_time <= server.end_time
        return server, attempts


@asynccontextmanager
async def traced(spans: Spans, *instances: Any, **settings: Any) -> AsyncIterator[Served]:
    async with serving(*instances, **settings) as served:
        served.gateway.tracing = spans.tracing
        yield served
