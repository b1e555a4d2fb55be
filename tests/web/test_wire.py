"""The HTTP API: routes, errors, keys, CORS, live events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest
from fakes import HELLO, KEYS, Other, Served, make_instance, serving

from nexus_gateway.secret import Secret
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream

both_ways = pytest.mark.usefixtures("each_way")

NAMES = ["Fake (Key #1)", "Other (Key #2)"]


async def ask(
    served: Served, method: str, path: str, **more: Any
) -> tuple[int, Any, Mapping[str, str]]:
    async with served.session.request(method, served.url + path, **more) as response:
        text = await response.text()
        body = json.loads(text) if response.content_type == "application/json" else text
        return response.status, body, response.headers.copy()


def two(upstream: FakeUpstream) -> tuple[Any, Any]:
    return make_instance(upstream), make_instance(upstream, 2, provider=Other, name="other")


BAD_BODIES: dict[bytes, str | None] = {
    b"": None,
    b"{": None,
    b"\xff": None,
    b"[]": None,
    b"null": None,
    b'"text"': None,
    b"{}": "messages",
    b'{"messages": null}': "messages",
    b'{"messages": "x"}': "messages",
    b'{"messages": []}': "messages",
    b'{"messages": [1]}': "messages[0]",
    b'{"messages": [{}]}': "messages[0].role",
    b'{"messages": [{"role": 1}]}': "messages[0].role",
    b'{"messages": [{"role": "user", "content": 5}]}': "messages[0].content",
    b'{"messages": [{"role": "user", "content": [5]}]}': "messages[0].content[0]",
    b'{"messages": [{"role": "user"}], "model": 5}': "model",
    b'{"messages": [{"role": "user"}], "stream": "yes"}': "stream",
    b'{"messages": [{"role": "user"}], "stream_options": 1}': "stream_options",
    b'{"messages": [{"role": "user"}], "x": NaN}': None,
    b'{"messages": [{"role": "user"}], "x": 1e999}': None,
    b'{"messages": [{"role": "user"}], "x": ' + b"1" * 5000 + b"}": None,
    b'{"messages": [{"role": "user", "content": "\\ud800"}]}': None,
    b'{"messages": [{"role": "user"}], "model": "\\ud800"}': None,
    b'{"messages": [{"role": "user"}], "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}": None,
}


@pytest.mark.proves("F34", "S-22")
@pytest.mark.parametrize("number", range(len(BAD_BODIES)))
async def test_a_bad_body_is_a_400_that_names_the_field(
    upstream: FakeUpstream, number: int
) -> None:
    body, param = list(BAD_BODIES.items())[number]
    async with serving(make_instance(upstream)) as served:
        status, text, headers = await served.chat(body)
    error = json.loads(text)["error"]
    assert (status, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert error["message"]
    assert headers["Content-Type"].startswith("application/json")
    assert upstream.hits() == 0


async def test_all_errors_have_openais_shape(upstream: FakeUpstream) -> None:
    async with serving(make_instance(upstream)) as served:
        for method, path, status, code in [
            ("GET", "/nowhere", 404, "unknown_path"),
            ("POST", "/v1/nowhere", 404, "unknown_path"),
            ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
            ("DELETE", "/v1/models", 405, "method_not_allowed"),
            ("GET", "/v1/models/unknown", 404, "model_not_found"),
        ]:
            got, body, headers = await ask(served, method, path)
            assert (got, body["error"]["code"]) == (status, code), path
            assert set(body["error"]) == {"message", "type", "param", "code"}
            assert headers["X-Request-Id"]
            assert "Server" not in headers
        assert (await ask(served, "GET", "/v1/chat/completions"))[2]["Allow"] == "POST"


@pytest.mark.proves("F32", "S-14")
async def test_large_and_compressed_bodies_are_rejected(upstream: FakeUpstream) -> None:
    async with serving(make_instance(upstream)) as served:
        status, text, _ = await served.chat(b" " * (21 * 1024 * 1024))
        assert (status, json.loads(text)["error"]["code"]) == (413, "request_too_large")

        async def endless() -> Any:
            for _ in range(21):
                yield b" " * 1024 * 1024

        path = "/v1/chat/completions"
        status, body, _ = await ask(served, "POST", path, data=endless())
        assert (status, body["error"]["code"]) == (413, "request_too_large")
        status, text, _ = await served.chat(b"x", headers={"Content-Encoding": "gzip"})
        assert status == 415
    assert upstream.hits() == 0


@both_ways
@pytest.mark.proves("F35", "S-19")
async def test_only_a_valid_request_id_is_echoed(upstream: FakeUpstream) -> None:
    async with serving(make_instance(upstream)) as served:
        assert (await served.chat(headers={"X-Request-Id": "mine-1"}))[2][
            "X-Request-Id"
        ] == "mine-1"
        generated = (await served.chat(headers={"X-Request-Id": "not sane!"}))[2]["X-Request-Id"]
        assert generated.startswith("req-")


@both_ways
async def test_streams_by_default_only_without_a_model(upstream: FakeUpstream) -> None:
    async with serving(make_instance(upstream)) as served:
        for body, kind in [
            (HELLO, "text/event-stream"),
            ({**HELLO, "model": "auto"}, "application/json"),
            ({**HELLO, "model": "auto", "stream": True}, "text/event-stream"),
            ({**HELLO, "stream": False}, "application/json"),
        ]:
            _, _, headers = await served.chat(body)
            assert headers["Content-Type"].startswith(kind)
        assert headers["X-Nexus-Provider"] == "Fake (Key #1)"
        assert headers["X-Nexus-Model"] == "fake-large"
        assert "upstream;dur=" in headers["Server-Timing"]


@both_ways
@pytest.mark.parametrize(
    ("model", "provider", "asked"),
    [
        ("fake", NAMES[0], "fake-large"),
        ("fake-small", NAMES[0], "fake-small"),
        ("fake/anything", NAMES[0], "anything"),
        ("other-text", NAMES[1], "other-text"),
        ("Other (Key #2)", NAMES[1], "other-text"),
        ("gpt-unknown", None, None),
        ("nexus", None, None),
    ],
)
async def test_a_model_name_selects_an_instance(
    upstream: FakeUpstream, model: str, provider: str | None, asked: str | None
) -> None:
    async with serving(*two(upstream)) as served:
        status, _, headers = await served.chat({**HELLO, "model": model})
        assert status == 200
        assert provider is None or headers["X-Nexus-Provider"] == provider
        assert asked is None or upstream.requests[0].body["model"] == asked


async def test_strict_models_reject_an_unknown_name(upstream: FakeUpstream) -> None:
    async with serving(*two(upstream), strict_models=True) as served:
        status, text, _ = await served.chat({**HELLO, "model": "gpt-unknown"})
    assert (status, json.loads(text)["error"]["code"]) == (404, "model_not_found")


async def test_a_routing_mode_must_exist(upstream: FakeUpstream) -> None:
    async with serving(*two(upstream)) as served:
        for mode in ("smart", "fastest", "round-robin", "Smart"):
            assert (await served.chat(headers={"X-Routing-Mode": mode}))[0] == 200
        status, text, _ = await served.chat(headers={"X-Routing-Mode": "best"})
        assert status == 400
        assert "smart, fastest, round-robin" in text


async def test_models_are_listed(upstream: FakeUpstream) -> None:
    async with serving(*two(upstream)) as served:
        _, body, _ = await ask(served, "GET", "/v1/models")
        listed = {m["id"]: m for m in body["data"]}
        assert list(listed) == ["auto", "fake-large", "fake-small", "other-text"]
        assert listed["fake-large"]["context_window"] == 1000
        assert listed["fake-large"]["modalities"] == ["text", "image"]
        assert listed["other-text"]["modalities"] == ["text"]
        for name in ("fake-small", "auto", "nexus", "fake", "fake/vendor%2Fx"):
            status, body, _ = await ask(served, "GET", f"/v1/models/{name}")
            assert (status, body["object"]) == (200, "model")


async def test_health_reports_instances_and_a_drain(upstream: FakeUpstream) -> None:
    async with serving(*two(upstream)) as served:
        await served.chat()
        status, body, _ = await ask(served, "GET", "/health")
        assert (status, body["status"], body["inFlightRequests"]) == (200, "healthy", 0)
        assert [p["name"] for p in body["providers"]] == NAMES
        used = max(body["providers"], key=lambda p: p["metrics"]["totalRequests"])
        assert used["metrics"]["successRate"] == "100.0%"
        assert used["metrics"]["healthScore"].endswith("%")
        assert used["circuitState"] == "CLOSED"
        for instance in served.instances:
            instance.park_bad_key()
        assert (await served.health())["status"] == "unhealthy"
        assert (await ask(served, "GET", "/health/ready"))[0] == 200
        assert (await ask(served, "GET", "/health/live"))[0] == 200
        served.gateway.drain.begun.set()
        assert (await ask(served, "GET", "/health"))[0] == 503
        assert (await ask(served, "GET", "/health/ready"))[0] == 503
        status, text, headers = await served.chat()
        assert (status, headers["Connection"], headers["Retry-After"]) == (503, "close", "1")
        assert json.loads(text)["error"]["code"] == "shutting_down"


@pytest.mark.proves("I-17", "S-12")
async def test_a_toggle_applies_at_once(upstream: FakeUpstream) -> None:
    path = "/v1/providers/toggle"
    async with serving(*two(upstream)) as served:
        off = {"name": NAMES[0], "enabled": False}
        for _ in range(2):
            status, body, _ = await ask(served, "POST", path, json=off)
            assert (status, body["enabled"]) == (200, False)
        for _ in range(5):
            assert (await served.chat())[2]["X-Nexus-Provider"] == NAMES[1]
        served.instances[0].park_bad_key()
        _, body, _ = await ask(served, "POST", path, json={**off, "enabled": True})
        assert (body["enabled"], body["parkReason"]) == (True, None)
        for wrong, status in [
            ({"name": "X", "enabled": True}, 404),
            ({"name": NAMES[0], "enabled": "no"}, 400),
            ({"enabled": True}, 400),
            ([], 400),
        ]:
            got, body, _ = await ask(served, "POST", path, json=wrong)
            assert got == status
            assert body["error"]["message"]
        assert (
            NAMES[1]
            in (await ask(served, "POST", path, json={"name": "X", "enabled": True}))[1]["error"][
                "message"
            ]
        )
        form = {"Content-Type": "text/plain"}
        assert (await ask(served, "POST", path, data=json.dumps(off), headers=form))[0] == 415
        for instance in served.instances:
            instance.disable()
        status, text, _ = await served.chat()
        assert (status, json.loads(text)["error"]["code"]) == (503, "no_providers")


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.proves("S-11")
async def test_keys_and_the_admin_token_grant_separate_access(upstream: FakeUpstream) -> None:
    locks = {"gateway_keys": (Secret("alpha"), Secret("beta")), "admin_token": Secret("root")}
    toggle = {"method": "POST", "path": "/v1/providers/toggle"}
    body = {"json": {"name": NAMES[0], "enabled": True}}
    async with serving(make_instance(upstream), **locks) as served:
        assert (await ask(served, "GET", "/health"))[0] == 200
        for token, status in [("alpha", 200), ("beta", 200), ("gamma", 401), ("root", 401)]:
            assert (await ask(served, "GET", "/v1/models", headers=bearer(token)))[0] == status
        assert (await served.chat())[0] == 401
        non_ascii = {"Authorization": "Bearer \xe9\xe9"}
        assert (await ask(served, "GET", "/v1/models", headers=non_ascii))[0] == 401
        for token, status in [("root", 200), ("alpha", 401)]:
            got = await ask(served, **toggle, **body, headers=bearer(token))
            assert got[0] == status
        assert got[1]["error"]["code"] == "invalid_api_key"
        assert (await ask(served, "GET", "/v1/events", headers=bearer("beta")))[0] == 401


async def test_every_route_under_v1_needs_a_key(upstream: FakeUpstream) -> None:
    async with serving(make_instance(upstream), gateway_keys=(Secret("alpha"),)) as served:
        for method, path in [
            ("POST", "/v1/chat/completions"),
            ("GET", "/v1/models"),
            ("GET", "/v1/models/auto"),
            ("POST", "/v1/providers/toggle"),
            ("GET", "/v1/events"),
        ]:
            assert (await ask(served, method, path))[0] == 401, path


@pytest.mark.proves("S-12")
async def test_admin_calls_need_a_token_from_other_hosts(upstream: FakeUpstream) -> None:
    path, body = "/v1/providers/toggle", {"name": NAMES[0], "enabled": True}
    async with serving(make_instance(upstream), host="0.0.0.0") as served:
        status, answer, _ = await ask(served, "POST", path, json=body)
        assert (status, answer["error"]["code"]) == (403, "admin_closed")
        assert "ADMIN_TOKEN" in answer["error"]["message"]
        assert (await served.chat())[0] == 200
    async with serving(make_instance(upstream)) as served:
        for host, status in [("evil.example", 403), ("localhost:3000", 200), ("[::1]:1", 200)]:
            got = await ask(served, "POST", path, json=body, headers={"Host": host})
            assert got[0] == status, host


@both_ways
@pytest.mark.proves("S-13")
async def test_cors_headers_follow_the_setting(upstream: FakeUpstream) -> None:
    origin = {"Origin": "https://chat.example"}
    preflight = {**origin, "Access-Control-Request-Method": "POST"}
    chat, toggle = "/v1/chat/completions", "/v1/providers/toggle"
    allow = "Access-Control-Allow-Origin"
    async with serving(make_instance(upstream), cors_origin="*") as served:
        status, _, headers = await ask(served, "OPTIONS", chat, headers=preflight)
        assert (status, headers[allow]) == (204, "*")
        assert (await served.chat(headers=origin))[2][allow] == "*"
        assert (await served.chat(b"{", headers=origin))[2][allow] == "*"
        assert allow not in (await ask(served, "OPTIONS", toggle, headers=preflight))[2]
        assert (await ask(served, "OPTIONS", "/nowhere", headers=preflight))[0] == 404
        assert (await ask(served, "POST", "/nowhere"))[0] == 404
    async with serving(make_instance(upstream), cors_origin="https://chat.example") as served:
        _, _, headers = await ask(served, "OPTIONS", toggle, headers=preflight)
        assert (headers[allow], headers["Vary"]) == ("https://chat.example", "Origin")
        other = {**preflight, "Origin": "https://evil.example"}
        assert allow not in (await ask(served, "OPTIONS", chat, headers=other))[2]


async def read_events(served: Served, count: int, last_id: str = "") -> list[dict[str, str]]:
    headers = {"Last-Event-ID": last_id} if last_id else {}
    events: list[dict[str, str]] = []
    async with served.session.get(served.url + "/v1/events", headers=headers) as response:
        event: dict[str, str] = {}
        async for line in response.content:
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name:
                event[name] = value
            elif event:
                if event["event"] != "gateway":  # sent periodically
                    events.append(event)
                event = {}
            if len(events) == count:
                break
    return events


async def test_live_events_resume_after_the_last_id(upstream: FakeUpstream) -> None:
    async with serving(*two(upstream)) as served:
        listening = asyncio.create_task(read_events(served, 2))
        await asyncio.sleep(0.1)
        served.instances[0].disable()
        first, second = await asyncio.wait_for(listening, 30)
        assert (first["event"], second["event"]) == ("snapshot", "instance")
        assert [p["name"] for p in json.loads(first["data"])["providers"]] == NAMES
        assert json.loads(second["data"])["enabled"] is False
        served.instances[0].enable()
        (missed,) = await asyncio.wait_for(read_events(served, 1, second["id"]), 30)
        assert (missed["event"], json.loads(missed["data"])["enabled"]) == ("instance", True)
        (fresh,) = await asyncio.wait_for(read_events(served, 1, "other-5"), 30)
        assert fresh["event"] == "snapshot"
        assert not any(key in str([first, second, missed]) for key in KEYS)


@pytest.mark.proves("I-59", "S-08")
async def test_an_internal_error_exposes_no_details(
    upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(make_instance(upstream)) as served:

        def fail(*args: object) -> None:
            raise RuntimeError("internal detail")

        monkeypatch.setattr(served.gateway.scheduler, "attempt", fail)
        status, text, _ = await served.chat()
        assert (status, json.loads(text)["error"]["code"]) == (500, "internal_error")
        assert "internal detail" not in text


@pytest.mark.proves("I-59", "I-31")
async def test_an_internal_error_during_a_stream_breaks_the_connection(
    upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.default = Reply(delay_s=0.01)
    async with serving(make_instance(upstream)) as served:

        def fail(*args: object) -> None:
            raise RuntimeError("internal detail")

        monkeypatch.setattr("nexus_gateway.wire.passthrough.EventTemplate.apply_to_one", fail)
        with pytest.raises(Exception, match=r"payload|disconnected"):
            await served.chat()
        assert served.instances[0].in_flight == 0


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/chat/completions", {**HELLO, "stream": False}, "choices"),
        ("/messages", {**HELLO, "max_tokens": 9}, "stop_reason"),
        ("/responses", {"input": "Hello!"}, "output"),
    ],
)
async def test_a_base_url_without_v1_is_served(
    upstream: FakeUpstream, path: str, body: Any, field: str
) -> None:
    async with serving(make_instance(upstream)) as served:
        status, text, _ = await served.post(path, body)
        async with served.session.get(served.url + "/models/auto") as answer:
            model = await answer.json()
    assert (status, field in json.loads(text), model["id"]) == (200, True, "auto")


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/v1/v1/messages", "should end before /v1"),
        ("/nowhere", ""),
    ],
)
async def test_a_wrong_base_url_is_explained(upstream: FakeUpstream, path: str, hint: str) -> None:
    async with serving(make_instance(upstream)) as served:
        status, text, _ = await served.post(path, HELLO)
    message = json.loads(text)["error"]["message"]
    assert status == 404
    assert message.endswith(hint) if not hint else hint in message
