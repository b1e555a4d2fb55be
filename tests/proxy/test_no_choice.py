"""Nothing in a request chooses where a key goes, and nothing else of the caller is forwarded."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import pytest
import trustme
from endpoints import BODIES as ENDPOINT_BODIES
from endpoints import HI, Native
from fakes import HELLO, KEYS, Fake, make_instance, serving
from intruder import canary, raw, request

from nexus_gateway.provider import Provider
from nexus_gateway.secret import Secret
from nexus_gateway.testing.gateway import instance_of
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream

both_ways = pytest.mark.usefixtures("each_way")

BODIES = {
    **ENDPOINT_BODIES,
    "/v1/chat/completions": {"messages": HI},
    "/v1/messages/count_tokens": {"messages": HI},
}


def fields(url: str) -> dict[str, Any]:
    """Return fields that chose an upstream or a key in other gateways."""
    names = ("api_base", "base_url", "api_key", "apiBase", "baseURL", "API_BASE", "host", "url")
    nested = {"api_base": url, "base_url": url, "headers": {"Authorization": "Bearer stolen"}}
    return {
        **dict.fromkeys(names, url),
        **dict.fromkeys(("extra_body", "litellm_params", "provider", "extra_headers"), nested),
    }


@both_ways
@pytest.mark.proves("S-01")
@pytest.mark.parametrize("path", BODIES)
async def test_no_field_of_a_body_chooses_an_upstream(upstream: FakeUpstream, path: str) -> None:
    async with canary() as decoy, serving(make_instance(upstream, provider=Native)) as served:
        body = {**BODIES[path], **fields(decoy.url)}
        await served.post(f"{path}?api_base={decoy.url}&api_key=k&base_url={decoy.url}", body)
    assert decoy.visits == 0
    assert upstream.requests
    for received in upstream.requests:
        assert (received.target, received.key) == (path, KEYS[0])
        assert not {"api_base", "base_url", "api_key"} & set(received.body)


@both_ways
@pytest.mark.proves("S-01")
async def test_no_field_of_a_form_chooses_an_upstream(upstream: FakeUpstream) -> None:
    async with canary() as decoy, serving(make_instance(upstream, provider=Native)) as served:
        named = {
            "api_base": decoy.url,
            "base_url": decoy.url,
            "api_key": "k",
            "model": "ears",
        }
        parts = [f'name="{name}"\r\n\r\n{value}' for name, value in named.items()]
        parts += ['name="file"; filename="a.wav"\r\n\r\nRIFF']
        body = "".join(f"--X\r\nContent-Disposition: form-data; {p}\r\n" for p in parts) + "--X--"
        kind = {"Content-Type": "multipart/form-data; boundary=X"}
        await served.post("/v1/audio/transcriptions", body.encode(), headers=kind)
    assert decoy.visits == 0
    (received,) = upstream.requests
    assert received.key == KEYS[0]
    assert b"api_base" not in received.raw
    assert b"base_url" not in received.raw
    assert b"api_key" not in received.raw


CHOOSERS = (
    "x-portkey-custom-host",
    "x-portkey-config",
    "x-portkey-provider",
    "x-litellm-api-base",
    "Helicone-Target-URL",
    "X-Upstream",
    "X-Base-Url",
    "X-Original-URL",
    "X-Rewrite-URL",
    "X-Forwarded-Host",
    "X-Forwarded-Server",
    "Forwarded",
    "Destination",
    "Location",
)


@both_ways
@pytest.mark.proves("S-02", "S-17")
@pytest.mark.parametrize("path", BODIES)
async def test_no_header_chooses_an_upstream_or_is_forwarded(
    upstream: FakeUpstream, path: str
) -> None:
    instance = make_instance(upstream, provider=Native)
    async with canary() as decoy, serving(instance, cors_origin="*") as served:
        headers = [f"{name}: {decoy.url}" for name in CHOOSERS]
        headers += ["Authorization: Bearer a-callers", "X-Api-Key: a-callers", "api-key: x"]
        headers += ["Cookie: a=b", "Proxy-Authorization: Basic eDp5", "OpenAI-Organization: o"]
        headers += ["X-Forwarded-For: 1.2.3.4", "OpenAI-Project: p", "x-goog-api-key: x"]
        headers += ["User-Agent: spy", "Referer: http://secret.example", "Origin: http://a.example"]
        headers += [
            "X-Request-Id: mine",
            "Accept: text/html",
            "Accept-Encoding: br",
            "TE: trailers",
        ]
        body, host = json.dumps(BODIES[path]).encode(), decoy.url.removeprefix("http://")
        target = f"POST {decoy.url}{path}"  # a proxy would follow this
        await raw(served.url, request(target, *headers, body=body, host=host))
    assert decoy.visits == 0
    sent = {name.lower(): value for name, value in upstream.requests[0].headers.items()}
    assert set(sent) == {
        *("accept", "accept-encoding", "authorization", "content-length", "content-type"),
        *("host", "user-agent", "via"),
    }
    assert sent["authorization"] == f"Bearer {KEYS[0]}"
    assert sent["host"] in upstream.base_url
    assert sent["user-agent"].startswith("nexus-gateway/")
    assert sent["accept-encoding"] == "identity"
    assert sent["via"] == served.gateway.client.via
    assert not any("callers" in value or value in ("mine", "br") for value in sent.values())


BUILT_IN = [
    point
    for point in metadata.entry_points(group="nexus_gateway.providers")
    if point.value.startswith("nexus_gateway_plugins.") and point.name != "demo"
]


@both_ways
@pytest.mark.proves("S-05")
@pytest.mark.parametrize("point", BUILT_IN, ids=lambda point: point.name)
async def test_a_key_is_never_in_a_url(point: metadata.EntryPoint) -> None:
    cls: type[Provider] = point.load()
    key = "canary-0123456789"
    async with FakeUpstream() as upstream:
        instance = instance_of(cls, upstream.base_url, key=key, model="a-model")
        async with serving(instance) as served:
            await served.chat()
    assert upstream.requests
    for received in upstream.requests:
        assert key not in received.target
        assert key not in received.raw.decode()
        assert received.key == key


PICTURES: dict[str, Any] = {
    "/v1/chat/completions": lambda url: {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": url}},
                    {"type": "input_audio", "input_audio": {"url": url}},
                    {"type": "file", "file": {"file_url": url}},
                ],
            }
        ]
    },
    "/v1/messages": lambda url: {
        "max_tokens": 9,
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image", "source": {"type": "url", "url": url}}],
            }
        ],
    },
    "/v1/responses": lambda url: {
        "input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]
    },
}


@pytest.mark.proves("S-07")
@pytest.mark.parametrize("native", [False, True], ids=["translated", "as it is"])
@pytest.mark.parametrize("path", PICTURES)
async def test_urls_in_a_body_are_not_fetched(
    upstream: FakeUpstream, path: str, native: bool
) -> None:
    instance = make_instance(upstream, provider=Native if native else Fake)
    async with canary() as decoy, serving(instance) as served:
        url = decoy.url + "/latest/meta-data"
        await served.post(path, PICTURES[path](url))
    assert decoy.visits == 0
    assert url in upstream.requests[0].raw.decode()


@pytest.mark.proves("S-22")
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_an_upstream_gets_the_fields_as_the_gateway_parsed_them(
    upstream: FakeUpstream, path: str
) -> None:
    start = json.dumps(BODIES[path])[:-1].encode()
    twice = (
        start + b', "model": "fake/one", "x": {"a": 1, "a": 2}, "model": "fake/two",'
        b'"api_base": "http://a", "\\u0061pi_base": "http://b", "stream": true, "stream": false}'
    )
    async with serving(make_instance(upstream, provider=Native)) as served:
        status, _, headers = await served.post(path, twice)
        assert status == 200
        for invalid in (b', "x": NaN}', b', "x": -Infinity}', b', "x": 1e999}', b', "x": 1}{}'):
            assert (await served.post(path, start + invalid))[0] == 400

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({name for name, _ in pairs}) == len(pairs), pairs
        return dict(pairs)

    (received,) = upstream.requests
    body = json.loads(received.raw, object_pairs_hook=unique)
    assert (body["model"], headers["X-Nexus-Model"]) == ("two", "two")
    assert (body["x"], body["stream"]) == ({"a": 2}, False)
    assert "api_base" not in body


HOSTILE = {
    "Set-Cookie": "a=b",
    "Access-Control-Allow-Origin": "https://evil.example",
    "Access-Control-Allow-Credentials": "true",
    "Location": "https://evil.example",
    "Refresh": "0; url=https://evil.example",
    "Server": "upstream/1.0",
    "X-Powered-By": "upstream",
    "WWW-Authenticate": "Basic",
    "Content-Disposition": "attachment",
    "x-request-id": "theirs",
    "x-should-retry": "true",
    "Clear-Site-Data": '"*"',
    "Content-Security-Policy": "none",
}
ALLOWED = {
    *("content-type", "content-length", "transfer-encoding", "date", "connection"),
    *("cache-control", "x-accel-buffering", "x-request-id", "x-nexus-provider"),
    *("x-nexus-model", "x-nexus-attempts", "x-nexus-affinity", "server-timing"),
    *("retry-after", "x-should-retry"),
}


@both_ways
@pytest.mark.proves("S-16", "F28")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [200, 400, 500])
async def test_no_header_of_an_upstream_is_forwarded(
    upstream: FakeUpstream, status: int, stream: bool
) -> None:
    upstream.default = Reply(status=status, headers=HOSTILE)
    async with serving(make_instance(upstream), max_attempts=1) as served:
        for _ in range(2):
            _, _, headers = await served.chat(stream=stream)
            assert {name.lower() for name in headers} <= ALLOWED
            assert "theirs" not in headers["X-Request-Id"]
            assert not any("evil" in value for value in headers.values())
    assert not any("Cookie" in received.headers for received in upstream.requests)


@both_ways
@pytest.mark.proves("S-16", "F27")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(
    upstream: FakeUpstream, status: int, stream: bool
) -> None:
    async with canary() as decoy, serving(make_instance(upstream), max_attempts=1) as served:
        upstream.default = Reply(status=status, headers={"Location": decoy.url + "/v1"})
        got, text, headers = await served.chat(stream=stream)
    assert (got, decoy.visits, upstream.hits()) == (503, 0, 1)
    assert decoy.url not in text + str(headers)
    assert "redirected" in text


@both_ways
@pytest.mark.proves("S-16")
async def test_a_huge_error_is_cut(upstream: FakeUpstream) -> None:
    flood = json.dumps({"error": {"message": "x" * 5_000_000}}).encode()
    upstream.default = Reply(status=400, body=flood)
    async with serving(make_instance(upstream)) as served:
        status, text, _ = await served.chat()
    assert (status, len(text) < 4000) == (400, True)


@contextlib.contextmanager
def environment(monkeypatch: pytest.MonkeyPatch, proxy: str) -> Iterator[None]:
    with monkeypatch.context() as patched:
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
            patched.setenv(name, proxy)
        patched.delenv("NO_PROXY", raising=False)
        patched.delenv("no_proxy", raising=False)
        yield


@both_ways
@pytest.mark.proves("S-16")
async def test_no_proxy_of_the_environment_gets_a_key(
    upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with canary() as decoy:
        with environment(monkeypatch, decoy.url):
            async with serving(make_instance(upstream)) as served:
                assert (await served.chat())[0] == 200
    assert decoy.visits == 0


@both_ways
@pytest.mark.proves("S-16")
@pytest.mark.parametrize("name", ["127.0.0.1", "other.example"])
async def test_no_key_is_sent_if_the_certificate_is_invalid(name: str) -> None:
    received: list[bytes] = []

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.read(100))
        writer.close()

    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert(name).configure_cert(server_context)
    server = await asyncio.start_server(receive, "127.0.0.1", 0, ssl=server_context)
    async with server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        async with serving(make_instance(url), max_attempts=1) as served:
            status, text, _ = await served.chat()
    assert (status, "TLS failed" in text) == (503, True)
    assert not any(received)


@both_ways
@pytest.mark.proves("S-08", "F37")
async def test_a_connection_error_reveals_no_address(upstream: FakeUpstream) -> None:
    where = "no-such-host.invalid"
    for url in ("http://127.0.0.1:9", f"http://{where}/v1", "http://[::1]:9/v1"):
        async with serving(make_instance(url), max_attempts=1) as served:
            status, text, _ = await served.chat({**HELLO, "stream": True})
        assert status == 503
        for hint in ("127.0.0.1", "::1", where, ":9", "Errno", "aiohttp", "Cannot connect"):
            assert hint not in text


@both_ways
@pytest.mark.proves("F48")
async def test_a_key_may_be_short_long_or_repeated(upstream: FakeUpstream) -> None:
    keys = ["k", "k" * 500, KEYS[0], KEYS[0]]
    names = ["fake", "fake", "fake", "other"]
    instances = [
        make_instance(upstream, number, key=Secret(key), name=name, provider=provider)
        for number, (key, name, provider) in enumerate(
            zip(keys, names, [Fake, Fake, Fake, Native], strict=True), 1
        )
    ]
    async with serving(*instances) as served:
        for _ in keys:
            assert (await served.chat(headers={"X-Routing-Mode": "round-robin"}))[0] == 200
        labels = [p["name"] for p in (await served.health())["providers"]]
    assert sorted(received.key for received in upstream.requests) == sorted(keys)
    assert len(set(labels)) == len(keys)
