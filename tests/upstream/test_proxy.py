"""Requests to upstreams through a proxy."""

from __future__ import annotations

import ssl
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
import trustme
from fakes import HELLO, Served, make_instance, serving
from proxies import Proxy, running
from raw import BODY, HEAD, Wire, chunked, listening
from yarl import URL

from nexus_gateway.cli.serve import configure
from nexus_gateway.errors import ConfigError
from nexus_gateway.secret import Secret
from nexus_gateway.settings import Settings
from nexus_gateway.testing.upstream import FakeUpstream
from nexus_gateway.upstream.proxy import proxy_of

HOST = "api.upstream.test"
ANSWER = HEAD + b"\r\n" + chunked(BODY)


@asynccontextmanager
async def tls_upstream(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    """An upstream whose certificate is for HOST; yield its port."""
    authority = trustme.CA()
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST).configure_cert(server_context)
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)
    monkeypatch.setattr(aiohttp.connector, "_SSL_CONTEXT_VERIFIED", client_context)
    async with listening(Wire(ANSWER), server_context) as url:
        yield URL(url).port or 0


@asynccontextmanager
async def gateway(url: str, **settings: Any) -> AsyncIterator[Served]:
    settings["upstream_proxy"] = Secret(settings["upstream_proxy"])
    async with serving(make_instance(url), **settings) as served:
        yield served


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "plain"])
async def test_a_tunnel_leads_to_an_https_upstream(
    monkeypatch: pytest.MonkeyPatch, direct: bool
) -> None:
    if direct:
        monkeypatch.delattr("nexus_gateway.upstream.client.Client._via_aiohttp")
    async with tls_upstream(monkeypatch) as port:
        proxy = Proxy({HOST: port})
        async with (
            running(proxy) as address,
            gateway(
                f"https://{HOST}/v1",
                upstream_proxy=f"http://me:pass%40@{address}",
                direct_path=direct,
            ) as served,
        ):
            for _ in range(2):
                status, text, _ = await served.chat({**HELLO, "stream": True})
                assert (status, "[DONE]" in text) == (200, True)

    (head,) = proxy.heads  # the tunnel was used again
    assert head.startswith(f"CONNECT {HOST}:443 ")
    assert f"Proxy-Authorization: Basic {b64encode(b'me:pass@').decode()}" in head
    assert "key-one" not in head


async def test_an_http_upstream_is_asked_by_its_whole_address(upstream: FakeUpstream) -> None:
    proxy = Proxy({HOST: URL(upstream.base_url).port or 0})
    async with (
        running(proxy) as address,
        gateway(f"http://{HOST}/v1", upstream_proxy=f"http://{address}") as served,
    ):
        assert (await served.chat())[0] == 200

    assert proxy.heads[0].startswith(f"POST http://{HOST}/v1/chat/completions ")
    assert upstream.hits() == 1


@pytest.mark.parametrize("refusal", [403, 407, 502])
async def test_a_proxy_that_refuses_is_named_without_its_password(refusal: int) -> None:
    proxy = Proxy({}, refusal)
    async with (
        running(proxy) as address,
        gateway(f"https://{HOST}/v1", upstream_proxy=f"http://me:pass-word@{address}") as served,
    ):
        status, text, _ = await served.chat()
        async with served.session.get(f"{served.url}/v1/providers") as answer:
            shown = await answer.text()

    assert status == 503
    assert "the proxy (UPSTREAM_PROXY) refused the connection" in text
    assert "pass-word" not in text + shown
    assert address not in text + shown


async def test_a_proxy_that_is_not_there_is_named() -> None:
    async with gateway(f"https://{HOST}/v1", upstream_proxy="http://127.0.0.1:9") as served:
        status, text, _ = await served.chat()

    assert status == 503
    assert "the proxy (UPSTREAM_PROXY) could not be reached" in text


async def test_this_machine_is_asked_without_the_proxy(upstream: FakeUpstream) -> None:
    async with gateway(upstream.base_url, upstream_proxy="http://127.0.0.1:9") as served:
        assert (await served.chat())[0] == 200


PROXY, SECURE, PLAIN = "http://p.test:1", "http://s.test:2", "http://h.test:3"
BOTH = {"HTTPS_PROXY": SECURE, "http_proxy": PLAIN}


@pytest.mark.parametrize(
    ("env", "url", "expected"),
    [
        ({}, "https://a.test/v1", None),
        (BOTH, "https://a.test/v1", None),
        ({"UPSTREAM_PROXY": PROXY, **BOTH}, "https://a.test/v1", PROXY),
        ({"UPSTREAM_PROXY": PROXY}, "http://a.test/v1", PROXY),
        ({"UPSTREAM_PROXY": "ENV", **BOTH}, "https://a.test/v1", SECURE),
        ({"UPSTREAM_PROXY": "env", **BOTH}, "http://a.test/v1", PLAIN),
        ({"UPSTREAM_PROXY": "env", "HTTP_PROXY": PLAIN}, "https://a.test/v1", None),
        *(
            ({"UPSTREAM_PROXY": PROXY, name: no}, "https://api.a.test:8443/v1", expected)
            for name in ("NO_PROXY", "no_proxy")
            for no, expected in [
                ("a.test", None),
                (".a.test", None),
                ("*.a.test", None),
                ("b.test, API.a.test", None),
                ("a.test:8443", None),
                ("*", None),
                ("b.test", PROXY),
                ("pi.a.test", PROXY),
                ("a.test:443", PROXY),
                ("api.a.test.b.test", PROXY),
                (" , ", PROXY),
            ]
        ),
        ({"UPSTREAM_PROXY": PROXY}, "http://localhost:11434/v1", None),
        ({"UPSTREAM_PROXY": PROXY}, "http://127.8.8.8/v1", None),
        ({"UPSTREAM_PROXY": PROXY}, "http://[::1]:11434/v1", None),
        ({"UPSTREAM_PROXY": PROXY}, "http://gpu-box:8000/v1", PROXY),
    ],
)
def test_the_settings_choose_the_proxy(env: dict[str, str], url: str, expected: str | None) -> None:
    proxy = proxy_of(Settings.from_env(env), URL(url))
    assert (None if proxy is None else str(proxy).rstrip("/")) == expected


@pytest.mark.parametrize(
    ("env", "name"),
    [
        ({"UPSTREAM_PROXY": "socks5://user:secret@p.test:1"}, "UPSTREAM_PROXY"),
        ({"UPSTREAM_PROXY": "user:secret@p.test"}, "UPSTREAM_PROXY"),
        ({"UPSTREAM_PROXY": "http://user:secret@"}, "UPSTREAM_PROXY"),
        ({"UPSTREAM_PROXY": "http://user:secret@p.test:99999"}, "UPSTREAM_PROXY"),
        ({"UPSTREAM_PROXY": "http://user:secret@p.test/path"}, "UPSTREAM_PROXY"),
        ({"UPSTREAM_PROXY": "env", "HTTPS_PROXY": "socks5://user:secret@p.test"}, "HTTPS_PROXY"),
        ({"UPSTREAM_PROXY": "env", "http_proxy": "secret"}, "HTTP_PROXY"),
    ],
)
def test_a_wrong_proxy_is_named_without_its_value(env: dict[str, str], name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.from_env(env)

    (problem,) = caught.value.problems
    assert problem.startswith(f"{name} must be the URL of an HTTP proxy")
    assert "secret" not in problem


def test_a_proxy_that_is_not_used_may_have_any_value() -> None:
    assert not Settings.from_env({"HTTPS_PROXY": "socks5://[p", "UPSTREAM_PROXY": ""}).proxies


def test_only_the_passwords_are_masked_in_logs() -> None:
    env = {"UPSTREAM_PROXY": "env", "HTTPS_PROXY": "http://me:one-secret@p.test:1"}
    settings = Settings.from_env({**env, "HTTP_PROXY": PLAIN})

    assert [secret.reveal() for secret in settings.proxy_secrets] == ["one-secret"]
    assert "one-secret" not in repr(settings)


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ({}, []),
        ({"HTTPS_PROXY": SECURE}, ["HTTPS_PROXY"]),
        ({"https_proxy": SECURE, "all_proxy": PROXY}, ["HTTPS_PROXY", "ALL_PROXY"]),
        ({"HTTPS_PROXY": SECURE, "UPSTREAM_PROXY": "env"}, []),
        ({"HTTPS_PROXY": SECURE, "UPSTREAM_PROXY": PROXY}, []),
        ({"UPSTREAM_PROXY": "env"}, ["UPSTREAM_PROXY"]),
    ],
)
def test_the_start_names_proxies_without_effect(env: dict[str, str], named: list[str]) -> None:
    _, pool = configure({"GROQ_KEY_1": "a", **env}, demo=False)

    assert [warning.split()[0] for warning in pool.warnings] == named
    assert not any(".test" in warning for warning in pool.warnings)
