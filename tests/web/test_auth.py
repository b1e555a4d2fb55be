"""Each route accepts its own credentials; another credential changes nothing for the others."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
from fakes import make_instance, serving
from intruder import raw, request
from multidict import CIMultiDict

from nexus_gateway.errors import Forbidden, Unauthorized
from nexus_gateway.secret import Secret
from nexus_gateway.settings import Settings
from nexus_gateway.testing.upstream import FakeUpstream
from nexus_gateway.web.app import ROUTES
from nexus_gateway.web.auth import Access, check

KEY, VIEWER, ADMIN = "alpha-caller", "vera-viewer", "root-admin"
LOCKS: dict[str, Any] = {
    "gateway_keys": (Secret("another"), Secret(KEY)),
    "admin_token": Secret(ADMIN),
    "viewer_token": Secret(VIEWER),
}
CREDENTIALS = {
    "nothing": {},
    "a wrong token": {"Authorization": "Bearer wrong"},
    "a key": {"Authorization": f"Bearer {KEY}"},
    "a key in the other header": {"x-api-key": KEY},
    "the viewer's token": {"Authorization": f"Bearer {VIEWER}"},
    "the viewer's token in the other header": {"x-api-key": VIEWER},
    "nearly the viewer's token": {"Authorization": f"Bearer {VIEWER[:-1]}"},
    "the admin's token": {"Authorization": f"Bearer {ADMIN}"},
    "the admin's token in the other header": {"x-api-key": ADMIN},
}
# With all credentials set. A credential that is not listed opens only public routes.
OPENS = {
    "a key": {Access.CALLER},
    "a key in the other header": {Access.CALLER},
    "the viewer's token": {Access.VIEWER},
    "the admin's token": {Access.VIEWER, Access.ADMIN},
}


def lines(headers: Mapping[str, str]) -> list[str]:
    return [f"{name}: {value}" for name, value in headers.items()]


@pytest.mark.proves("S-02", "S-23")
@pytest.mark.parametrize("credential", CREDENTIALS)
async def test_each_route_accepts_only_its_own_credentials(
    upstream: FakeUpstream, credential: str
) -> None:
    async with serving(make_instance(upstream), **LOCKS) as served:
        for route in ROUTES:
            opens = {Access.PUBLIC} | OPENS.get(credential, set())
            path = served.url + route.path.replace("{id:.+}", "auto").replace("{id}", "resp_1")
            # Only the head is read: the events have no end.
            async with served.session.request(
                route.method, path, headers=CREDENTIALS[credential]
            ) as answer:
                if route.access in opens:
                    assert answer.status not in (401, 403), route.path
                    continue
                assert answer.status == 401, route.path
                text = await answer.text()
            assert not any(word in text for word in (KEY, VIEWER, ADMIN))
            assert ("VIEWER_TOKEN" in text) is (route.access is Access.VIEWER)
        assert served.instances[0].enabled
    assert upstream.hits() == 0


async def test_the_error_names_the_gateway_key_if_it_grants_viewing(upstream: FakeUpstream) -> None:
    settings = {name: LOCKS[name] for name in ("viewer_token", "gateway_keys")}
    async with serving(make_instance(upstream), **settings) as served:
        status, _, body = await raw(served.url, request("GET /v1/providers"))
        assert (status, b"needs the VIEWER_TOKEN or a gateway key as" in body) == (401, True)


async def test_a_viewer_token_alone_grants_only_viewing_to_other_hosts(
    upstream: FakeUpstream,
) -> None:
    token = f"Authorization: Bearer {VIEWER}"
    locks = {"host": "0.0.0.0", "viewer_token": LOCKS["viewer_token"]}
    async with serving(make_instance(upstream), **locks) as served:
        for path in ("/metrics", "/v1/usage", "/v1/providers"):
            status, head, body = await raw(served.url, request(f"GET {path}"))
            assert (status, b"needs the VIEWER_TOKEN as" in body) == (401, True)
            assert b"WWW-Authenticate: Bearer" in head
            assert (await raw(served.url, request(f"GET {path}", token)))[0] in (200, 404)
        for more in ([], [token]):
            sent = request("POST /v1/providers/toggle", *more, "Content-Type: application/json")
            status, _, body = await raw(served.url, sent)
            assert (status, b'"admin_closed"' in body) == (403, True)


def verdict(headers: Mapping[str, str], access: Access, settings: dict[str, Any]) -> object:
    """Return the caller's name, or the class of the error."""
    try:
        return check(CIMultiDict(headers), access, Settings(**settings))
    except (Forbidden, Unauthorized) as error:
        return type(error)


OTHER_LOCKS = [
    {"host": host, **{name: LOCKS[name] for name in names}}
    for host in ("127.0.0.1", "0.0.0.0")
    for names in ((), ("gateway_keys",), ("admin_token",), ("gateway_keys", "admin_token"))
]
HOST_HEADERS = [
    {"Host": "127.0.0.1:3000"},
    {"Host": "a.example"},
    {"Host": "::1", "Via": "1.1 proxy"},
]


@pytest.mark.proves("S-23")
@pytest.mark.parametrize(
    "settings", OTHER_LOCKS, ids=lambda one: " ".join([one["host"], *list(one)[1:]])
)
def test_a_viewer_token_changes_only_viewing(settings: dict[str, Any]) -> None:
    added = {**settings, "viewer_token": LOCKS["viewer_token"]}
    for credential, host_headers, access in itertools.product(CREDENTIALS, HOST_HEADERS, Access):
        headers = {**host_headers, **CREDENTIALS[credential]}
        before, after = (verdict(headers, access, one) for one in (settings, added))
        case = (credential, host_headers, access)
        if access is not Access.VIEWER:
            assert after == before, case
        elif credential == "the viewer's token":
            assert after == "", case
        elif before is Forbidden:
            assert after is Unauthorized, case  # a token would be accepted now
        else:
            assert after == before, case


@pytest.mark.proves("S-23")
@pytest.mark.parametrize("settings", [{**one, **LOCKS} for one in OTHER_LOCKS] + OTHER_LOCKS)
def test_admin_access_includes_viewing(settings: dict[str, Any]) -> None:
    for credential, host_headers in itertools.product(CREDENTIALS.values(), HOST_HEADERS):
        headers = {**host_headers, **credential}
        if isinstance(verdict(headers, Access.ADMIN, settings), str):
            assert isinstance(verdict(headers, Access.VIEWER, settings), str)


def test_an_empty_token_is_no_token() -> None:
    for headers in ({"Authorization": "Bearer "}, {"Authorization": "Bearer"}, {}):
        for access in (Access.VIEWER, Access.ADMIN):
            assert verdict({"Host": "a", **headers}, access, {}) is Forbidden
            locks = {"admin_token": LOCKS["admin_token"]}
            assert verdict({"Host": "a", **headers}, access, locks) is Unauthorized
