"""Where spans go: to a collector, by OTLP over HTTP.

All is set as OpenTelemetry's own variables say, which its SDK reads itself. Spans wait in a queue
of bounded length and go out in batches from a thread of the SDK's, so that a collector that is
slow or away costs spans and nothing else: no request waits for it, the log has a line of it now
and then, and the process does not outstay its end by more than FLUSH_S.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from nexus_gateway import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

    from nexus_gateway.telemetry.tracing import Tracing

logger = logging.getLogger("nexus_gateway")

SERVICE = "nexus-gateway"
FLUSH_S = 2.0
QUIET_S = 60.0
_QUERY = re.compile(r"\?[^\s)'\"]+")
_OFF = "no traces: %s"


@asynccontextmanager
async def open_tracing() -> AsyncIterator[Tracing | None]:
    """Open the way to the collector that the environment names, and flush at the end.

    Yields:
        What makes spans; None where the environment says that there shall be none, or where the
        packages are not there: that is said in the log, and no reason not to serve.
    """
    sdk = _sdk()
    if sdk is None:
        yield None
        return
    from nexus_gateway.telemetry.tracing import Tracing

    try:
        yield Tracing(*sdk)
    finally:
        await _shut_down(sdk[1])


def _sdk() -> tuple[TracerProvider, SpanProcessor] | None:
    env = os.environ
    if env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    if env.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() == "none":
        return None
    protocol = env.get("OTEL_EXPORTER_OTLP_PROTOCOL", "")
    if env.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", protocol).strip().lower() == "grpc":
        logger.warning(_OFF, "they go by OTLP over HTTP only; set the protocol to http/protobuf")
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        logger.warning(_OFF, "they need the extra otel: in the clone, pip install '.[otel]'")
        return None
    _listen_to_the_sdk()
    try:
        # What the environment says of us goes before.
        resource = Resource({SERVICE_VERSION: __version__}).merge(Resource.create())
        named = str(resource.attributes.get(SERVICE_NAME, "unknown_service"))
        if named.startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: SERVICE}))
        # Not at exit: there is nobody left then to bound the time.
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        return provider, BatchSpanProcessor(OTLPSpanExporter())
    except ValueError as error:
        logger.warning(_OFF, f"one of the OTEL_ variables is wrong: {error}")
        return None


async def _shut_down(processor: SpanProcessor) -> None:
    """Send what waits, for FLUSH_S at most; a thread of its own, which no exit waits for."""
    loop = asyncio.get_running_loop()
    flushed = asyncio.Event()

    def shut_down() -> None:
        try:
            processor.shutdown()
        finally:
            try:
                loop.call_soon_threadsafe(flushed.set)
            except RuntimeError:
                pass  # it took too long, and the loop is closed

    threading.Thread(target=shut_down, name="trace-flush", daemon=True).start()
    try:
        async with asyncio.timeout(FLUSH_S):
            await flushed.wait()
    except TimeoutError:
        logger.warning("the last traces could not be sent in %g s", FLUSH_S)


class _NowAndThen(logging.Handler):
    """Passes on what the SDK has to say, once in QUIET_S; it repeats itself with each batch."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said_s = float("-inf")
        self._left_out = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a line on, or count it."""
        now_s = time.monotonic()
        if now_s - self._said_s < QUIET_S:
            self._left_out += 1
            return
        # A collector's address may hold its key.
        why = _QUERY.sub("?***", record.getMessage())
        fields = {"why": why, "since_then": self._left_out or None}
        self._said_s, self._left_out = now_s, 0
        logger.warning("traces cannot be sent as they should", extra={"fields": fields})


def _listen_to_the_sdk() -> None:
    theirs = logging.getLogger("opentelemetry")
    if not any(isinstance(handler, _NowAndThen) for handler in theirs.handlers):
        theirs.addHandler(_NowAndThen())
    theirs.propagate = False
