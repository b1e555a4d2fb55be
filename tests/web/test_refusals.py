"""Each error response is counted once: by its endpoint, or as refused."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from fakes import HELLO, make_instance, serving
from intruder import raw, request
from processes import process, worker_pids, write_env
from scraping import scrape_process
from waiting import until, until_async

from nexus_gateway.secret import Secret
from nexus_gateway.telemetry.metrics import definitions
from nexus_gateway.telemetry.metrics.counting import OTHER, REASONS
from nexus_gateway.testing.gateway import Served
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream
from nexus_gateway.web import gateway

CHAT, TOGGLE = "POST /v1/chat/completions", "POST /v1/providers/toggle"
JSON = "Content-Type: application/json"
BODY = json.dumps(HELLO).encode()
KEY, ADMIN = "Authorization: Bearer a-caller", "Authorization: Bearer an-admin"
LOCKS: dict[str, Any] = {
    "gateway_keys": (Secret("a-caller"),),
    "admin_token": Secret("an-admin"),
    "viewer_token": Secret("a-viewer"),
}
CHUNKED = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n" + KEY.encode() + b"\r\n%b\r\n\r\n"
REFUSED = [
    (request(CHAT, JSON, body=BODY), "401", "invalid_api_key"),
    (request(CHAT, JSON, "x-api-key: wrong", body=BODY), "401", "invalid_api_key"),
    (request("GET /v1/models", "Authorization: Bearer wrong"), "401", "invalid_api_key"),
    (request(TOGGLE, JSON, KEY, body=b"{}"), "401", "invalid_api_key"),
    (request("GET /metrics", KEY), "401", "invalid_api_key"),
    (request(CHAT, JSON, KEY, "X-Nexus-Explain: true", body=BODY), "401", "invalid_api_key"),
    (request(CHAT, JSON, KEY, "X-Nexus-Explain: maybe", body=BODY), "400", "invalid_explain"),
    (request("POST /chat/completion", JSON, KEY, body=BODY), "404", "unknown_path"),
    (request("GET /static/nothing.js"), "404", "unknown_path"),
    (request("GET /v1/models/unknown", KEY), "404", "model_not_found"),
    (request("GET /v1/usage", ADMIN), "404", "ledger_off"),
    (request("GET /v1/chat/completions", KEY), "405", "method_not_allowed"),
    (request("OPTIONS /nowhere", "Access-Control-Request-Method: GET"), "404", "unknown_path"),
    (request(TOGGLE, "Content-Type: text/plain", ADMIN), "415", "unsupported_media_type"),
    (request(TOGGLE, JSON, ADMIN, body=b"{"), "400", "invalid_request_error"),
    (
        request(TOGGLE, JSON, ADMIN, body=b'{"name":"x","enabled":true}'),
        "404",
        "instance_not_found",
    ),
    (request(TOGGLE, JSON, ADMIN, body=b" " * (1024 * 1024 + 1)), "413", "request_too_large"),
    (request(CHAT, JSON, KEY, "Transfer-Encoding: chunked", body=BODY), "400", "bad_http"),
    (CHUNKED % b"Transfer-Encoding: chunked" + b"no chunk\r\n", "400", "bad_http"),
    (b"\x16\x03\x01 this is no HTTP\r\n\r\n", "400", "bad_http"),
    (request("GET /health", "A: " + "a" * 9000), "431", "invalid_request_error"),
]
REJECTED = [
    (request(CHAT, JSON, KEY, body=b"{"), "400"),
    (request(CHAT, JSON, KEY, body=b" " * (1024 * 1024 + 1)), "413"),
    (request(CHAT, JSON, KEY, "Content-Encoding: gzip", body=BODY), "415"),
    (request(CHAT, JSON, KEY, "X-Routing-Mode: random", body=BODY), "400"),
    (CHUNKED % b"Transfer-Encoding: gzip, chunked", "400"),
    (request("POST /v1/embeddings", JSON, KEY, body=b'{"input":"a","model":"fake"}'), "404"),
    (request("POST /v1/messages", JSON, KEY, body=b"{}"), "400"),
]


def port_of(served: Served) -> int:
    return int(served.url.rpartition(":")[2])


def counted(served: Served) -> Counter[tuple[str, ...]]:
    """Return the counts of both metrics."""
    meter = served.gateway.meter
    assert meter is not None
    names = (definitions.REQUESTS.name, definitions.REFUSED.name)
    return Counter(
        {k: int(n[0]) for k, n in meter._counting.counts.numbers.items() if k[0] in names}
    )


@pytest.mark.parametrize(("sent", "status", "reason"), REFUSED)
async def test_a_request_that_reaches_no_endpoint_is_counted_as_refused(
    upstream: FakeUpstream, sent: bytes, status: str, reason: str
) -> None:
    async with serving(make_instance(upstream), max_body_mb=1, **LOCKS) as served:
        assert str((await raw(served.url, sent))[0]) == status
        assert counted(served) == {(definitions.REFUSED.name, status, reason): 1}


@pytest.mark.parametrize(("sent", "status"), REJECTED)
async def test_a_request_that_an_endpoint_rejects_is_counted_once(
    upstream: FakeUpstream, sent: bytes, status: str
) -> None:
    async with serving(make_instance(upstream), max_body_mb=1, **LOCKS) as served:
        assert str((await raw(served.url, sent))[0]) == status
        ((family, _, kind, _),) = counted(served).elements()
        assert (family, kind) == (definitions.REQUESTS.name, f"{status[0]}xx")


async def test_an_interrupted_body_is_counted_by_its_endpoint(upstream: FakeUpstream) -> None:
    async with serving(make_instance(upstream), **LOCKS) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(served))
        writer.write(CHUNKED % b"Transfer-Encoding: chunked" + b"2\r\n{ \r\n")
        await until(lambda: served.gateway.drain.in_flight)
        writer.write(b"no chunk\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
        writer.close()
        assert counted(served) == {(definitions.REQUESTS.name, "chat", "4xx", "bad_http"): 1}


async def test_a_failure_is_counted_only_by_its_endpoint(
    upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.default = Reply(status=500)
    async with serving(make_instance(upstream), max_attempts=1) as served:
        assert (await served.chat())[0] == 503
        assert counted(served) == {(definitions.REQUESTS.name, "chat", "5xx", "no_candidate"): 1}

        def fail(*args: object) -> None:
            raise RuntimeError("an internal error")

        monkeypatch.setattr(served.gateway.scheduler, "attempt", fail)
        assert (await served.chat())[0] == 500
        monkeypatch.setattr("nexus_gateway.web.handlers.models.catalogue", fail)
        async with served.session.get(served.url + "/v1/models") as answer:
            assert answer.status == 500
        counts = counted(served)
        assert counts[(definitions.REQUESTS.name, "chat", "5xx", "internal_error")] == 1
        assert counts[(definitions.REFUSED.name, "500", "internal_error")] == 1
        assert counts.total() == 3


async def test_an_error_outside_the_handlers_is_counted(
    upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("an internal error")

    async with serving(make_instance(upstream)) as served:
        monkeypatch.setattr("nexus_gateway.web.middleware.authenticate", fail)
        monkeypatch.setattr("nexus_gateway.web.middleware.gateway_of", fail)
        assert (await raw(served.url, request("GET /health")))[0] == 500
        assert counted(served) == {(definitions.REFUSED.name, "500", "internal_error"): 1}


async def test_overload_is_counted_by_its_endpoint_and_a_drain_as_refused(
    upstream: FakeUpstream,
) -> None:
    upstream.default = Reply(head_delay_s=0.3)
    async with serving(make_instance(upstream), max_concurrent=1) as served:
        first = asyncio.create_task(served.chat())
        while not upstream.open:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        assert (await served.chat())[0] == 503
        served.gateway.drain.begin()
        assert (await served.chat())[0] == 503
        assert (await first)[0] == 200
        assert counted(served) == {
            (definitions.REQUESTS.name, "chat", "5xx", "overloaded"): 1,
            (definitions.REFUSED.name, "503", "shutting_down"): 1,
            (definitions.REQUESTS.name, "chat", "2xx", "success"): 1,
        }


async def test_no_input_becomes_a_label(upstream: FakeUpstream) -> None:
    async with serving(make_instance(upstream)) as served:
        for number in range(50):
            line = f"{'GET' if number % 2 else 'PROPFIND'} /path-{number}?q={number}"
            assert (await raw(served.url, request(line)))[0] == 404
        assert counted(served) == {(definitions.REFUSED.name, "404", "unknown_path"): 50}
        served.gateway.meter.refuse(404, "a_code_of_a_plugin")  # type: ignore[union-attr]
        assert counted(served)[(definitions.REFUSED.name, "404", OTHER)] == 1


async def test_series_of_frequent_refusals_start_at_zero(upstream: FakeUpstream) -> None:
    sample = re.compile(r'nexus_refused_requests_total\{reason="(\w+)",status="(\d+)"\} ([\d.]+)')
    async with serving(make_instance(upstream)) as served:
        await served.chat()
        async with served.session.get(served.url + "/metrics") as answer:
            samples = sample.findall(await answer.text())
    assert samples == [("invalid_api_key", "401", "0.0"), ("unknown_path", "404", "0.0")]


async def test_nothing_is_counted_without_metrics(
    upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "is_installed", lambda: False)
    async with serving(make_instance(upstream), **LOCKS) as served:
        assert served.gateway.meter is None
        for sent, status, _ in REFUSED[:2] + REFUSED[-2:]:
            assert str((await raw(served.url, sent))[0]) == status


async def test_each_worker_reports_the_refusals_of_all(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    locks = {"GATEWAY_KEYS": "a-caller", "VIEWER_TOKEN": "a-viewer"}
    write_env(tmp_path / ".env", upstream, **locks)
    name = 'nexus_refused_requests_total{reason="unknown_path",status="404"}'
    head = {"Authorization": "Bearer a-viewer"}
    async with (
        process(tmp_path, "--workers", "2") as gateway,
        aiohttp.ClientSession(headers=head) as session,
    ):
        await worker_pids(gateway)
        for _ in range(16):
            away = {"Connection": "close"}
            async with session.get(gateway.url + "/nowhere", headers=away) as answer:
                assert answer.status == 404

        async def all_report_all() -> bool:
            return [(await scrape_process(gateway, session))[name] for _ in range(8)] == [16] * 8

        await until_async(all_report_all)


def test_each_reason_is_a_known_one() -> None:
    reasons = {reason for _, _, reason in REFUSED} | {"internal_error", "shutting_down"}
    assert reasons <= REASONS
