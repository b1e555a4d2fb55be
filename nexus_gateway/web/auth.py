"""Who may call what: keys and tokens, compared with the settings.

The decision depends on the access that a route requires, on the settings and on the credentials. If
no token is set, it also depends on the `Host` header and on traces of a proxy.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from enum import Enum
from functools import lru_cache

from nexus_gateway.errors import Forbidden, Unauthorized
from nexus_gateway.secret import Secret
from nexus_gateway.settings import Settings, allowed_origin, is_loopback

_KEY = "key-"
# The second is what containers on a desktop call the machine.
_LOCAL_NAMES = (".localhost", "host.docker.internal")
_BY_PROXIES = (
    *("Forwarded", "Via", "X-Real-IP"),
    *("X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"),
)


class Access(Enum):
    """Who may call a route; a viewer may make the admin calls that only read."""

    PUBLIC = "public"
    CALLER = "caller"
    VIEWER = "viewer"
    ADMIN = "admin"

    @property
    def is_admin(self) -> bool:
        """Whether it is an admin call: never readable for pages of any origin."""
        return self in (Access.VIEWER, Access.ADMIN)


def owner(caller: str, settings: Settings) -> str:
    """Return whose the responses to a caller are, as they are kept: "" for all callers.

    It depends on the key itself, as another one may have its number after a reload.

    Args:
        caller: the key's number, as `check` returned it.
        settings: with which it was checked.
    """
    if not caller:
        return ""
    key = settings.gateway_keys[int(caller.removeprefix(_KEY)) - 1]
    return hashlib.sha256(key.reveal().encode()).hexdigest()


def check(headers: Mapping[str, str], access: Access, settings: Settings) -> str:
    """Check a caller's credentials.

    Returns:
        The key that was used: `key-2` for the second of GATEWAY_KEYS, "" if none is needed.

    Raises:
        Unauthorized: the key is missing or wrong.
        Forbidden: admin calls are closed by the configuration.
    """
    if access is Access.PUBLIC or (access is Access.CALLER and not settings.gateway_keys):
        return ""
    if access is Access.CALLER:
        return _check_key(headers, settings)
    tokens = {"ADMIN_TOKEN": settings.admin_token}
    if access is Access.VIEWER:
        tokens = {"VIEWER_TOKEN": settings.viewer_token, **tokens}
    tokens = {name: token for name, token in tokens.items() if token}
    if _matching(bearer(headers), tokens.values()):
        return ""
    if not settings.admin_token:
        # VIEWER_TOKEN is one more key: what is open without it stays open.
        try:
            return _check_without_token(headers, settings)
        except (Forbidden, Unauthorized):
            if not tokens:
                raise
    needed = " or the ".join(tokens)
    if not settings.admin_token and settings.gateway_keys and settings.is_local:
        needed += " or a gateway key"
    raise Unauthorized(f"This call needs the {needed} as `Authorization: Bearer …`.")


def _check_key(headers: Mapping[str, str], settings: Settings) -> str:
    number = _matching(bearer(headers), settings.gateway_keys) or _matching(
        headers.get("x-api-key", ""), settings.gateway_keys
    )
    if not number:
        raise Unauthorized(
            "This call needs a valid gateway key as `Authorization: Bearer …` or `x-api-key: …`."
        )
    return f"{_KEY}{number}"


def _check_without_token(headers: Mapping[str, str], settings: Settings) -> str:
    if not settings.is_local:
        raise Forbidden(
            "Admin calls are closed: the gateway listens beyond this machine and has no "
            "ADMIN_TOKEN. Set ADMIN_TOKEN and start it again.",
            code="admin_closed",
        )
    if settings.gateway_keys:
        return _check_key(headers, settings)
    if not _is_local(headers):
        raise Forbidden(
            "Admin calls without a token are open to this machine only: call 127.0.0.1, or set "
            "ADMIN_TOKEN.",
            code="admin_closed",
        )
    return ""


@lru_cache(maxsize=1024)
def is_local_name(host: str) -> bool:
    """Return whether a `Host`, with or without a port, is a name that only this machine has."""
    name = _without_port(host)
    return is_loopback(name) or name.lower().endswith(_LOCAL_NAMES)


@lru_cache(maxsize=1024)
def _may_be_rebound(host: str) -> bool:
    """Return whether a `Host` is a public name, whose owner can have it lead to this machine.

    Addresses are no names, and names without a dot are not public.
    """
    name = _without_port(host)
    if name.startswith("[") or "." not in name or is_local_name(name):
        return False
    return not name.replace(".", "").isdigit()


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[: host.find("]") + 1]
    return host.partition(":")[0]


@lru_cache(maxsize=1024)
def is_local_origin(origin: str) -> bool:
    """Return whether an `Origin` is a page of this machine, or a program such as an editor.

    `null` is neither: any page can give it to a frame.
    """
    scheme, _, host = origin.partition("://")
    return scheme not in ("http", "https", "null", "") or is_local_name(host)


def is_from_elsewhere(origin: str | None, site: str | None, allowed: str = "") -> bool:
    """Return whether a request is of a page that is neither of this machine nor `allowed`.

    Args:
        origin: its `Origin`; browsers send none with some requests.
        site: its `Sec-Fetch-Site`.
        allowed: an origin, "" for none.
    """
    if origin is None:
        return site == "cross-site"
    return origin != allowed and not is_local_origin(origin)


# Cached, as all requests of a program have the same headers.
@lru_cache(maxsize=256)
def refused_page(
    host: str | None, origin: str | None, site: str | None, hosts: str, cors_origin: str
) -> str:
    """Return why a page may not call, where no key keeps it from spending tokens; "" if it may.

    A page can also have its own name lead to this machine: its requests then have that name.

    Args:
        host: the request's `Host`.
        origin: its `Origin`.
        site: its `Sec-Fetch-Site`.
        hosts: HOST.
        cors_origin: CORS_ORIGIN.
    """
    allowed = allowed_origin(hosts, cors_origin)
    if allowed != "*" and is_from_elsewhere(origin, site, allowed):
        return (
            "Without GATEWAY_KEYS, pages of other machines may not call this gateway: set "
            "GATEWAY_KEYS, or CORS_ORIGIN to the page's origin."
        )
    if host and not allowed and _may_be_rebound(host):
        return (
            f"Without GATEWAY_KEYS, this gateway is called as localhost, not as {host!r}: "
            "behind a reverse proxy set GATEWAY_KEYS, or CORS_ORIGIN=*."
        )
    return ""


def bearer(headers: Mapping[str, str]) -> str:
    """Return the token of the Authorization header, or ""."""
    scheme, _, token = headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _matching(offered: str, secrets: Iterable[Secret]) -> int:
    """Compare with every secret in constant time; return the number of the match, or 0."""
    offered_bytes = offered.encode("utf-8", "surrogateescape")
    numbers = [
        number * hmac.compare_digest(offered_bytes, secret.reveal().encode())
        for number, secret in enumerate(secrets, 1)
    ]
    return max(numbers, default=0)


def _is_local(headers: Mapping[str, str]) -> bool:
    """Whether a request was sent to a loopback name, by no page from elsewhere and no proxy.

    A page that rebinds its own name to 127.0.0.1 sends that name; a proxy that forwards requests of
    others sends another name, or headers of its own.
    """
    if any(name in headers for name in _BY_PROXIES):
        return False
    origin, site = headers.get("Origin"), headers.get("Sec-Fetch-Site")
    return is_local_name(headers.get("Host", "")) and not is_from_elsewhere(origin, site)
