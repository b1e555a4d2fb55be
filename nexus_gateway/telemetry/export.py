"""Exports spans to a collector, by OTLP over HTTP.

Everything is set by OpenTelemetry's own variables, which its SDK reads itself. Spans wait in the
SDK's queue of bounded length and are sent in batches by its thread. A collector that is slow or
unreachable therefore costs spans and nothing else: no request waits for it, the log has a line
about it now and then, and it delays the end of the process by at most FLUSH_S.
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
    from opentelemetry.sdk.trace import TracerProvider

    from nexus_gateway.telemetry.tracing import Tracing

logger = logging.getLogger("nexus_gateway")

SERVICE = "nexus-gateway"
FLUSH_S = 2.0
QUIET_S = 60.0
_QUERY = re.compile(r"\?[^\s)'\"]+")
_OFF = "no traces: %s"


@asynccontextmanager
async def open_tracing() -> AsyncIterator[Tracing | None]:
    """Trace requests until the end, then flush.

    Yields None if the environment switches traces off, or if they cannot be exported, for the
    reason in the log; the gateway serves without them.
    """
    provider = _open_provider()
    if provider is None:
        yield None
        return
    from nexus_gateway.telemetry.tracing import Tracing

    try:
        yield Tracing(provider)
    finally:
        await _shut_down(provider)


def _open_provider() -> TracerProvider | None:
    if _env("OTEL_SDK_DISABLED") == "true" or _env("OTEL_TRACES_EXPORTER") == "none":
        return None
    protocol = _env("OTEL_EXPORTER_OTLP_PROTOCOL")
    if _env("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", protocol) == "grpc":
        logger.warning(_OFF, "only OTLP over HTTP is supported; set the protocol to http/protobuf")
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        logger.warning(_OFF, "they need the extra otel: in the clone, pip install '.[otel]'")
        return None
    _log_sdk_errors()
    try:
        # The environment's attributes take precedence.
        resource = Resource({SERVICE_VERSION: __version__}).merge(Resource.create())
        service = str(resource.attributes.get(SERVICE_NAME, "unknown_service"))
        if service.startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: SERVICE}))
        # Not at exit, where nothing would bound the time.
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    except ValueError as error:
        logger.warning(_OFF, f"one of the OTEL_ variables is wrong: {error}")
        return None
    return provider


def _env(name: str, default: str = "") -> str:
    return os.environ.get(name, default).strip().lower()


async def _shut_down(provider: TracerProvider) -> None:
    """Send the spans that wait, for FLUSH_S at most, in a thread that no exit waits for."""
    thread = threading.Thread(target=provider.shutdown, name="trace-flush", daemon=True)
    thread.start()
    await asyncio.to_thread(thread.join, FLUSH_S)
    if thread.is_alive():
        logger.warning("the last traces could not be sent in %g s", FLUSH_S)


class _SdkLogHandler(logging.Handler):
    """Logs the SDK's warnings, which repeat with each batch, once in QUIET_S."""

    _logged_s = float("-inf")
    _suppressed = 0

    def emit(self, record: logging.LogRecord) -> None:
        now_s = time.monotonic()
        if now_s - self._logged_s < QUIET_S:
            self._suppressed += 1
            return
        # A collector's address may hold its key.
        reason = _QUERY.sub("?***", record.getMessage())
        fields = {"why": reason, "since_then": self._suppressed or None}
        self._logged_s, self._suppressed = now_s, 0
        logger.warning("trace export is failing", extra={"fields": fields})


def _log_sdk_errors() -> None:
    sdk_logger = logging.getLogger("opentelemetry")
    if not any(isinstance(handler, _SdkLogHandler) for handler in sdk_logger.handlers):
        sdk_logger.addHandler(_SdkLogHandler(logging.WARNING))
    sdk_logger.propagate = False
