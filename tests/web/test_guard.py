"""No request gets past authentication, in whatever way it is disguised."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import hmac
import json
import re
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fakes import HELLO, KEYS, Served, make_instance, serving
from intruder import raw, request
from waiting import until

from nexus_gateway.discovery import PluginProblem
from nexus_gateway.routing.pool import Pool
from nexus_gateway.secret import Secret
from nexus_gateway.settings import Settings
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream
from nexus_gateway.web.app import ROUTES, build_app
from nexus_gateway.web.auth import Access
from nexus_gateway.web.middleware import ROUTE_OF, guard

ROOT = Path(__file__).resolve().parents[2]
LOCKS: dict[str, Any] = {
    "gateway_keys": (Secret("alpha-caller"), Secret("beta-caller"), Secret("gamma-caller")),
    "admin_token": Secret("root-admin"),
    "viewer_token": Secret("vera-viewer"),
}
TOGGLE = "/v1/providers/toggle"
OFF = {"name": "Fake (Key #1)", "enabled": False}
JSON = "Content-Type: application/json"
PUBLIC = {("GET", "/health"), ("GET", "/health/live"), ("GET", "/health/ready")}
PUBLIC |= {("GET", "/openapi.json")}
PUBLIC |= {("GET", "/"), ("GET", "/static/{name}")}  # they hold no data


def path_of(route: str) -> str:
    return route.replace("{id:.+}", "auto").replace("{id}", "resp_1")


@pytest.mark.proves("S-02", "S-15")
def test_every_route_has_an_access_level() -> None:
    app = build_app(Settings(), Pool())
    known = {(route.method, route.path): route for route in ROUTES}
    added = {r.handler for r in app.router.routes()}
    assert added == {route.handler for route in ROUTES} == set(app[ROUTE_OF])
    paths = {re.sub(":[^}]*", "", path) for route in ROUTES for path in route.paths}
    assert {resource.canonical for resource in app.router.resources()} == paths
    assert {at for at, route in known.items() if route.access is Access.PUBLIC} == PUBLIC
    admin = {at for at, route in known.items() if route.access is Access.ADMIN}
    viewer = {("GET", f"/v1/{name}") for name in ("events", "providers", "usage")}
    viewer |= {("GET", "/metrics")}
    assert {at for at, route in known.items() if route.access is Access.VIEWER} == viewer
    assert admin == {("POST", TOGGLE)}
    assert list(app.middlewares) == [guard]
    assert not app._subapps  # type: ignore[attr-defined]


@pytest.mark.proves("S-02", "S-03")
@pytest.mark.parametrize(
    ("route", "path"), [(route, path) for route in ROUTES for path in route.paths]
)
async def test_every_route_checks_credentials(
    upstream: FakeUpstream, route: Any, path: str
) -> None:
    path = path_of(path)
    async with serving(make_instance(upstream), **LOCKS) as served:
        for method in {route.method, "HEAD"} if route.method == "GET" else {route.method}:
            for offered in ("", "Authorization: Bearer wrong", "x-api-key: wrong"):
                status, _, _ = await raw(served.url, request(f"{method} {path}", offered or "A: b"))
                assert (status == 401) is (route.access is not Access.PUBLIC), (method, offered)
    assert upstream.hits() == 0


DISGUISED = [
    "GET http://evil.example/v1/models",
    "GET http://127.0.0.1/health/../v1/models",
    "GET //v1/models",
    "GET //health/v1/models",
    "GET //evil.example/v1/models",
    "GET /health/../v1/models",
    "GET /health/%2e%2e/v1/models",
    "GET /health/..%2fv1/models",
    "GET /health%2f..%2fv1%2fmodels",
    "GET /health;/v1/models",
    "GET /health%00/../v1/models",
    "GET /v1/models/",
    "GET /v1/models?/health",
    "GET /v1/models#/health",
    "GET /v1/./models",
    "GET /v1//models",
    "GET /%761/models",
    "GET /v1/%6dodels",
    "GET /V1/MODELS",
    "GET /v1\\models",
    "OPTIONS /v1/models",
    "TRACE /v1/models",
    "PUT /v1/chat/completions",
    f"POST {TOGGLE}/",
    f"POST http://127.0.0.1{TOGGLE}",
]
HEADERS = [
    "X-Forwarded-For: 127.0.0.1",
    "X-Forwarded-Host: localhost",
    "X-Forwarded-Proto: https",
    "X-Real-IP: 127.0.0.1",
    "Forwarded: for=127.0.0.1;host=localhost",
    "X-Original-URL: /health",
    "X-Rewrite-URL: /health",
    "X-HTTP-Method-Override: OPTIONS",
    "X-Custom-IP-Authorization: 127.0.0.1",
    "Origin: http://localhost",
    "Referer: http://localhost/health",
    "Access-Control-Request-Method: GET",
]


@pytest.mark.proves("S-03")
@pytest.mark.parametrize("line", DISGUISED)
async def test_no_path_bypasses_authentication(upstream: FakeUpstream, line: str) -> None:
    async with serving(make_instance(upstream), **LOCKS) as served:
        for host in ("127.0.0.1", "localhost/health", "evil.example"):
            status, _, body = await raw(served.url, request(line, JSON, *HEADERS[:-1], host=host))
            assert status in (400, 401, 404, 405), host
            assert b"fake-large" not in body
    assert (upstream.hits(), served.instances[0].enabled) == (0, True)


@pytest.mark.proves("S-03", "S-12")
@pytest.mark.parametrize("path", ["/v1/events", TOGGLE])
async def test_no_header_grants_admin_access(upstream: FakeUpstream, path: str) -> None:
    method, body = ("POST", json.dumps(OFF).encode()) if path == TOGGLE else ("GET", b"")
    line = f"{method} {path}"
    key = "Authorization: Bearer alpha-caller"
    async with serving(make_instance(upstream), **LOCKS) as served:
        for header in HEADERS:
            sent = request(line, JSON, header, key, "x-api-key: root-admin", body=body)
            assert (await raw(served.url, sent))[0] == 401, header
    async with serving(make_instance(upstream), host="0.0.0.0") as served:
        for header in HEADERS:
            sent = request(line, JSON, header, body=body)
            assert (await raw(served.url, sent))[0] == 403, header
    async with serving(make_instance(upstream)) as served:
        for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "[::1]a"):
            sent = request(line, JSON, *HEADERS[:-1], body=body, host=host)
            assert (await raw(served.url, sent))[0] in (400, 403), host
        for header in HEADERS[:5]:
            sent = request(line, JSON, header, body=body)
            assert (await raw(served.url, sent))[0] == 403, header  # a proxy forwarded it
        assert served.instances[0].enabled


async def test_only_the_admin_token_grants_admin_access(upstream: FakeUpstream) -> None:
    body = json.dumps(OFF).encode()
    async with serving(make_instance(upstream), **LOCKS) as served:
        for word, status in [
            *[("root-admin", 200), ("root-admi", 401), ("Root-Admin", 401)],
            ("vera-viewer", 401),
        ]:
            sent = request(f"POST {TOGGLE}", JSON, f"Authorization: Bearer {word}", body=body)
            assert (await raw(served.url, sent))[0] == status


INVALID_KEYS = [
    b"\xff\xfe",
    "ключ".encode(),
    b"alpha-caller\xc3",
    b"' OR '1'='1' --",
    b"alpha-caller' --",
    b"alpha-caller\t",
    b"alpha-caller beta-caller",
    b"",
    b"*",
    b"***",
    b"a" * 8000,
]


@pytest.mark.proves("S-11", "S-04")
@pytest.mark.parametrize("key", INVALID_KEYS, ids=lambda key: ascii(key)[:20])
async def test_a_malformed_key_is_a_wrong_key(upstream: FakeUpstream, key: bytes) -> None:
    async with serving(make_instance(upstream), **LOCKS) as served:
        for path in ("/v1/models", "/v1/events"):
            for name in (b"Authorization: Bearer ", b"Authorization: ", b"x-api-key: "):
                head = b"GET %b HTTP/1.1\r\nHost: x\r\n%b%b\r\nConnection: close\r\n\r\n"
                status, _, _ = await raw(served.url, head % (path.encode(), name, key))
                # Trailing whitespace is not part of a header's value.
                right = key == b"alpha-caller\t" and path == "/v1/models"
                assert status == (200 if right and not name.endswith(b"n: ") else 401), name


@pytest.mark.proves("S-11")
async def test_keys_are_compared_in_constant_time(
    upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[object, object]] = []
    real = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    keys = [key.reveal().encode() for key in LOCKS["gateway_keys"]]
    async with serving(make_instance(upstream), **LOCKS) as served:
        for word in ("alpha-caller", "gamma-caller", "wrong"):
            compared.clear()
            sent = request("GET /v1/models", f"Authorization: Bearer {word}")
            await raw(served.url, sent)
            assert compared[:3] == [(word.encode(), key) for key in keys]
        for word in ("vera-viewer", "root-admin", "wrong"):
            compared.clear()
            await raw(served.url, request("GET /metrics", f"Authorization: Bearer {word}"))
            assert compared == [(word.encode(), one) for one in (b"vera-viewer", b"root-admin")]


@pytest.mark.proves("S-04")
async def test_no_input_becomes_part_of_an_sql_statement(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    evil = "x'); DROP TABLE requests; --"
    path = str(tmp_path / "ledger.sqlite3")
    async with serving(make_instance(upstream), ledger=path) as served:
        head = {"Authorization": f"Bearer {evil}", "X-Nexus-Hedge": "true"}
        for model in (evil, '"; DELETE FROM requests; --'):
            await served.chat({**HELLO, "model": model, "stream": False}, headers=head)
        for by, status in ((evil, 400), ("model; DROP TABLE requests", 400), ("model", 200)):
            async with served.session.get(served.url + "/v1/usage", params={"by": by}) as answer:
                assert answer.status == status

        def models() -> set[str]:
            with contextlib.closing(sqlite3.connect(path)) as ledger:
                try:
                    rows = ledger.execute("SELECT asked_model FROM requests").fetchall()
                except sqlite3.OperationalError:  # there is no table yet
                    return set()
            return {row[0] for row in rows}

        await until(lambda: len(models()) == 2)
        assert models() == {evil, '"; DELETE FROM requests; --'}


@pytest.mark.proves("S-04")
def test_the_ledger_and_the_store_are_the_only_databases() -> None:
    known = {"sqlite3", "sqlalchemy", "psycopg", "psycopg2", "asyncpg", "aiosqlite", "pymongo"}
    paths = [*ROOT.glob("nexus_gateway/**/*.py"), *ROOT.glob("plugins/**/*.py")]
    ours = ("database.py", "ledger.py", "ledger_writer.py", "usage.py", "sqlite.py")
    for path in [path for path in paths if path.name not in ours]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not known & {name.partition(".")[0] for name in names}, path


SIMPLE = [  # a page may send these to another origin without a preflight
    "Content-Type: text/plain",
    "Content-Type: text/plain; charset=application/json",
    "Content-Type: text/plain;application/json",
    "Content-Type: application/x-www-form-urlencoded",
    "Content-Type: multipart/form-data; boundary=application/json",
    "A: no type at all",
]


@pytest.mark.proves("S-12")
async def test_another_origins_page_cannot_toggle_an_instance(upstream: FakeUpstream) -> None:
    body, origin = json.dumps(OFF).encode(), "Origin: https://evil.example"
    async with serving(make_instance(upstream)) as served:
        for kind in SIMPLE:
            sent = request(f"POST {TOGGLE}", kind, origin, body=body)
            assert (await raw(served.url, sent))[0] == 403, kind
            sent = request(f"POST {TOGGLE}", kind, "Origin: http://localhost:5173", body=body)
            assert (await raw(served.url, sent))[0] == 415, kind
        preflight = [
            "Access-Control-Request-Method: POST",
            "Access-Control-Request-Headers: content-type",
        ]
        _, head, _ = await raw(served.url, request(f"OPTIONS {TOGGLE}", origin, *preflight))
        assert b"access-control-allow-origin" not in head.lower()
        assert served.instances[0].enabled
        sent = request(f"POST {TOGGLE}", JSON, body=body)
        assert (await raw(served.url, sent))[0] == 200
        assert not served.instances[0].enabled


ALLOW = "Access-Control-Allow-Origin"
PAGE = "https://chat.example"


async def answers(served: Served, upstream: FakeUpstream, origin: str) -> list[Mapping[str, str]]:
    """Return the headers of successes, errors and broken streams."""
    headers: list[Mapping[str, str]] = []
    origin_header = {"Origin": origin}
    for reply in (Reply(), Reply(status=400), Reply(status=500), Reply(cut_after=2)):
        upstream.default = reply
        for stream in (False, True):
            headers.append((await served.chat(stream=stream, headers=origin_header))[2])
    headers.append((await served.chat(b"{", headers=origin_header))[2])
    headers.append((await served.chat(headers={**origin_header, "X-Routing-Mode": "none"}))[2])
    for method, path in [("GET", "/v1/models"), ("GET", "/nowhere"), ("PUT", "/health")]:
        async with served.session.request(
            method, served.url + path, headers=origin_header
        ) as answer:
            headers.append(answer.headers.copy())
    return headers


@pytest.mark.proves("S-13")
@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("configured", ["*", PAGE])
@pytest.mark.parametrize("origin", [PAGE, "https://evil.example", "null", PAGE + ".evil.example"])
async def test_only_the_configured_origin_may_read_an_answer(
    upstream: FakeUpstream, configured: str, origin: str
) -> None:
    allowed = configured if origin == configured or configured == "*" else None
    settings = {"cors_origin": configured, "max_attempts": 1}
    async with serving(make_instance(upstream), **settings) as served:
        for headers in await answers(served, upstream, origin):
            assert headers.get(ALLOW) == allowed
            assert "Access-Control-Allow-Credentials" not in headers
            assert (headers.get("Vary") == "Origin") is (configured != "*")


@pytest.mark.proves("S-13")
async def test_an_authentication_error_is_readable_across_origins(upstream: FakeUpstream) -> None:
    async with serving(make_instance(upstream), **LOCKS, cors_origin="*") as served:
        status, _, headers = await served.chat(headers={"Origin": PAGE})
        assert (status, headers[ALLOW]) == (401, "*")
        for line in (f"POST {TOGGLE}", "GET /v1/events"):
            status, head, _ = await raw(served.url, request(line, f"Origin: {PAGE}"))
            assert (status, ALLOW.encode() in head) == (401, False)


LOCAL_PAGES = [
    "http://localhost:5173",
    "https://127.0.0.1",
    "http://[::1]:8080",
    "http://a.localhost",
]
PROGRAMS = ["vscode-webview://0abc", "app://obsidian.md", "tauri://localhost"]
FOREIGN_PAGES = [
    "https://evil.example",
    "http://192.168.1.7",
    "http://localhost.evil.example",
    "null",
]


@pytest.mark.proves("S-13")
@pytest.mark.parametrize("origin", LOCAL_PAGES + PROGRAMS)
async def test_pages_of_this_machine_may_call_it(upstream: FakeUpstream, origin: str) -> None:
    async with serving(make_instance(upstream)) as served:
        status, _, headers = await served.chat(headers={"Origin": origin})
        assert (status, headers[ALLOW], headers["Vary"]) == (200, origin, "Origin")
        assert (await served.chat(headers={"Sec-Fetch-Site": "same-site"}))[0] == 200


@pytest.mark.proves("S-13")
@pytest.mark.parametrize(
    "sent", [*({"Origin": page} for page in FOREIGN_PAGES), {"Sec-Fetch-Site": "cross-site"}]
)
async def test_pages_from_elsewhere_spend_no_key(
    upstream: FakeUpstream, sent: dict[str, str]
) -> None:
    async with serving(make_instance(upstream)) as served:
        for stream in (True, False):
            status, text, headers = await served.chat(headers=sent, stream=stream)
            assert (status, ALLOW in headers) == (403, False)
            assert "GATEWAY_KEYS" in text
            assert "foreign_page" in text
    assert upstream.hits() == 0
    # A key that pages do not have protects as well, and CORS_ORIGIN=* opens to all.
    async with serving(make_instance(upstream), **LOCKS) as served:
        headers = {**sent, "x-api-key": "alpha-caller"}
        assert (await served.chat(headers=headers))[0] == 200
    async with serving(make_instance(upstream), cors_origin="*") as served:
        assert (await served.chat(headers=sent))[0] == 200


@pytest.mark.proves("S-13")
@pytest.mark.parametrize(
    ("host", "status"),
    [
        *((host, 200) for host in ("localhost", "127.0.0.1:80", "[::1]:3000", "a.localhost:1")),
        *((host, 200) for host in ("192.168.1.7:3000", "mybox:3000", "host.docker.internal")),
        *((host, 403) for host in ("evil.example", "evil.example:3000", "127.0.0.1.evil.example")),
    ],
)
async def test_a_name_that_leads_here_by_rebinding_is_refused(
    upstream: FakeUpstream, host: str, status: int
) -> None:
    async with serving(make_instance(upstream)) as served:
        sent = request(
            "POST /v1/chat/completions", JSON, body=json.dumps(HELLO).encode(), host=host
        )
        assert (await raw(served.url, sent))[0] == status
    async with serving(make_instance(upstream), **LOCKS) as served:
        key = "x-api-key: alpha-caller"
        body = json.dumps(HELLO).encode()
        sent = request("POST /v1/chat/completions", JSON, key, body=body, host=host)
        assert (await raw(served.url, sent))[0] == 200


@pytest.mark.proves("S-12")
@pytest.mark.parametrize("page", ["Origin: https://evil.example", "Sec-Fetch-Site: cross-site"])
@pytest.mark.parametrize("call", ["GET /v1/events", "GET /v1/usage", "GET /metrics"])
async def test_pages_from_elsewhere_make_no_admin_call(
    upstream: FakeUpstream, call: str, page: str
) -> None:
    async with serving(make_instance(upstream), cors_origin="*") as served:
        assert (await raw(served.url, request(call, page)))[0] == 403


def test_beyond_loopback_all_pages_may_call_unless_one_is_named() -> None:
    assert Settings(host="0.0.0.0").allowed_origin == "*"
    assert Settings(host="0.0.0.0", cors_origin=PAGE).allowed_origin == PAGE
    assert Settings(host="::1").allowed_origin == ""


@pytest.mark.proves("S-15")
@pytest.mark.usefixtures("each_way")
async def test_no_answer_names_the_software(upstream: FakeUpstream) -> None:
    async with serving(make_instance(upstream), max_attempts=1) as served:
        for headers in await answers(served, upstream, PAGE):
            assert "Server" not in headers
        for route in ROUTES:
            if route.path != "/v1/events":
                sent = request(f"{route.method} {path_of(route.path)}")
                _, head, body = await raw(served.url, sent)
                for word in (b"\r\nserver:", b"aiohttp", b"python"):
                    assert word not in (head + body).lower()


@pytest.mark.proves("S-15")
def test_the_default_host_is_loopback() -> None:
    assert (Settings().host, Settings.from_env({}).host) == ("127.0.0.1", "127.0.0.1")


@pytest.mark.proves("S-14")
async def test_the_size_of_a_head_is_limited(upstream: FakeUpstream) -> None:
    async with serving(make_instance(upstream)) as served:
        for head in (["A: " + "a" * 9000], ["a" * 9000 + ": A"], [f"A{i}: a" for i in range(200)]):
            assert (await raw(served.url, request("GET /health", *head)))[0] in (400, 431)
        assert (await raw(served.url, request("GET /" + "a" * 9000)))[0] in (400, 414, 431)
        assert (await raw(served.url, request("GET /health/live")))[0] == 200


@pytest.mark.proves("S-21")
async def test_public_health_shows_no_secrets(upstream: FakeUpstream) -> None:
    upstream.default = Reply(status=401)
    detail = "No module named 'x' (/srv/owner/secret/x.py)"
    problem = PluginProblem("provider", "x", "nexus-x", "1", "x:X", "it failed to load", detail)
    async with serving(make_instance(upstream), make_instance(upstream, 2), **LOCKS) as served:
        served.gateway.pool.problems.append(problem)
        await served.chat(headers={"Authorization": "Bearer alpha-caller"})
        health = await served.health()
        text = json.dumps(health)
    assert set(health) == {
        *("status", "version", "workers", "inFlightRequests", "providers", "pluginProblems"),
    }
    assert set(health["providers"][0]) == {
        *("name", "provider", "model", "circuitState", "enabled", "inFlight", "metrics"),
        *("parkedForMs", "parkReason", "probeInMs", "quotaLeft", "lastReason", "models"),
    }
    assert [p["name"] for p in health["providers"]] == ["Fake (Key #1)", "Fake (Key #2)"]
    assert [p["lastReason"] for p in health["providers"]] == ["the key was refused (401)"] * 2
    secrets = [
        *KEYS[:2],
        *(key.reveal() for key in LOCKS["gateway_keys"]),
        "root-admin",
        "vera-viewer",
    ]
    for secret in secrets:
        for form in (secret[:6], hashlib.sha256(secret.encode()).hexdigest()[:8]):
            assert form not in text
    assert upstream.base_url not in text
    assert "owner" not in text
    assert HELLO["messages"][0]["content"] not in text
