"""Traces of a process: configured in .env, sent at shutdown, which they do not block."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from collector import collecting
from fakes import HELLO
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from processes import process


class Receiver:
    """A collector that accepts traces and never answers."""

    def __init__(self) -> None:
        self.url = ""
        self.names: list[str] = []
        self.keys: set[str | None] = set()

    async def take(self, request: web.Request) -> web.Response:
        self.keys.add(request.headers.get("x-api-key"))
        traces = ExportTraceServiceRequest.FromString(await request.read())
        for resource in traces.resource_spans:
            for scope in resource.scope_spans:
                self.names += [span.name for span in scope.spans]
        await asyncio.sleep(60)
        return web.Response()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    collector = Receiver()
    async with collecting(collector.take) as collector.url:
        yield collector


async def test_waiting_spans_are_sent_at_shutdown_within_a_limit(
    tmp_path: Path, receiver: Receiver
) -> None:
    written = f"OTEL_EXPORTER_OTLP_ENDPOINT={receiver.url}\n"
    (tmp_path / ".env").write_text(written + "OTEL_EXPORTER_OTLP_HEADERS=x-api-key=tracer-key\n")
    async with process(tmp_path, "--demo") as gateway:
        url = gateway.url + "/v1/chat/completions"
        body = {**HELLO, "model": "demo", "stream": False}
        async with aiohttp.ClientSession() as session, session.post(url, json=body) as answer:
            assert answer.status == 200
        gateway.signal(signal.SIGTERM)
        assert await gateway.exit_code() == 0
    assert receiver.keys == {"tracer-key"}
    assert sorted(receiver.names)[0] == "POST /v1/chat/completions"
    assert len(receiver.names) == 2
    assert "the last traces could not be sent in 2 s" in "".join(gateway.log)
    assert "tracer-key" not in "".join(gateway.log)
