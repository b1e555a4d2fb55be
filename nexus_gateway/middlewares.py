"""What every request passes: errors in OpenAI's shape, and one door for all routes.

The door decides on the matched route and on nothing that a request says of itself: each route
is registered with who may call it, and one that is not has no handler behind it.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
from collections.abc import Awaitable, Callable, Iterable
from enum import Enum

from aiohttp import web

from nexus_gateway.errors import (
    Draining,
    Forbidden,
    GatewayError,
    InternalError,
    MethodNotAllowed,
    NotFound,
    TooLarge,
    Unauthorized,
)
from nexus_gateway.handlers.gateway import gateway_of, json_response, request_id
from nexus_gateway.relay import CallerGone
from nexus_gateway.secret import Secret
from nexus_gateway.settings import Settings

logger = logging.getLogger("nexus_gateway")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
PREFLIGHT_S = "600"


class Access(Enum):
    """Who may call a route."""

    PUBLIC = "public"
    CALLER = "caller"
    ADMIN = "admin"


# Which handler may be called by whom; filled by the application from its table of routes.
ACCESS = web.AppKey("access", dict[object, Access])


def access_of(request: web.Request, match: web.UrlMappingMatchInfo) -> Access:
    """Return who may call the matched route; a path without one is public: it holds a 404."""
    return request.config_dict[ACCESS].get(match.handler, Access.PUBLIC)


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into OpenAI's shape; what is nobody's error is ours, and logged."""
    try:
        return await handler(request)
    except GatewayError as error:
        return _answer(error)
    except web.HTTPException as error:
        return _answer(_translated(request, error))
    except CallerGone:
        return web.Response(status=499)
    except Exception:
        id = request_id(request)
        logger.exception("a request failed", extra={"fields": {"id": id}})
        return _answer(InternalError(id))


def _answer(error: GatewayError) -> web.Response:
    response = json_response(error.body(), error.status)
    response.headers.update(error.headers)
    if "Connection" in error.headers:
        response.force_close()
    return response


def _translated(request: web.Request, error: web.HTTPException) -> GatewayError:
    """Bring aiohttp's own errors into the tree."""
    if isinstance(error, web.HTTPNotFound):
        return NotFound(f"There is no {request.path!r} here.", code="unknown_path")
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        message = f"{request.method} is not allowed here; use {allowed}."
        return MethodNotAllowed(message, headers={"Allow": allowed})
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return TooLarge("The body is too large.")
    translated = GatewayError(error.reason or "The request failed.")
    translated.status = error.status
    return translated


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let in who may come in: preflights, then the drain, then keys."""
    if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
        return await _preflight(request)
    gateway = gateway_of(request)
    access = access_of(request, request.match_info)
    if gateway.drain.begun.is_set() and access is not Access.PUBLIC:
        raise Draining
    check(request, access, gateway.settings)
    return await handler(request)


def check(request: web.Request, access: Access, settings: Settings) -> None:
    """Check a caller's key.

    Raises:
        Unauthorized: the key is missing or wrong.
        Forbidden: admin calls are closed as the gateway is configured.
    """
    if access is Access.PUBLIC:
        return
    offered = bearer(request)
    if access is Access.ADMIN and settings.admin_token:
        if not _matches(offered, [settings.admin_token]):
            raise Unauthorized("This call needs the ADMIN_TOKEN as `Authorization: Bearer …`.")
        return
    if access is Access.ADMIN and not is_loopback(settings.host):
        raise Forbidden(
            "Admin calls are closed: the gateway listens beyond this machine and has no "
            "ADMIN_TOKEN. Set ADMIN_TOKEN and start it again.",
            code="admin_closed",
        )
    if settings.gateway_keys and not _matches(offered, settings.gateway_keys):
        raise Unauthorized("This call needs a valid gateway key as `Authorization: Bearer …`.")
    if access is Access.ADMIN and not settings.gateway_keys and not _named_locally(request):
        raise Forbidden(
            "Admin calls without a token are for this machine only; call 127.0.0.1 or set "
            "ADMIN_TOKEN.",
            code="admin_closed",
        )


def bearer(request: web.Request) -> str:
    """Return the token of the Authorization header, or ""."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _matches(offered: str, secrets: Iterable[Secret]) -> bool:
    """Compare with every secret in constant time."""
    given = offered.encode("utf-8", "surrogateescape")
    return any([hmac.compare_digest(given, s.reveal().encode()) for s in secrets])


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine's own loopback."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _named_locally(request: web.Request) -> bool:
    """Tell whether the request was sent to a loopback name.

    A page that rebinds its own name to 127.0.0.1, or a proxy that forwards the world to it,
    says another one.
    """
    host = request.headers.get("Host", "")
    name = host[: host.index("]") + 1] if host.startswith("[") and "]" in host else host
    return is_loopback(name if name.startswith("[") else name.partition(":")[0])


async def _preflight(request: web.Request) -> web.StreamResponse:
    """Answer a browser's question before a call from another origin."""
    method = request.headers["Access-Control-Request-Method"]
    if not method.isascii() or not method.isalpha():
        raise MethodNotAllowed("Access-Control-Request-Method names no method.")
    wanted = request.clone(method=method.upper())
    match = await request.app.router.resolve(wanted)
    if match.http_exception is not None:
        raise match.http_exception
    response = web.Response(status=204)
    response.headers["Access-Control-Allow-Methods"] = method.upper()
    response.headers["Access-Control-Allow-Headers"] = request.headers.get(
        "Access-Control-Request-Headers", "Authorization, Content-Type"
    )
    response.headers["Access-Control-Max-Age"] = PREFLIGHT_S
    _allow_origin(request, response, access_of(request, match))
    return response


def _allow_origin(request: web.Request, response: web.StreamResponse, access: Access) -> None:
    """Say which origin may read an answer; admin answers never say all of them."""
    allowed = gateway_of(request).settings.cors_origin
    if allowed == "*":
        if access is not Access.ADMIN:
            response.headers["Access-Control-Allow-Origin"] = "*"
    else:
        response.headers["Vary"] = "Origin"
        if request.headers.get("Origin") == allowed:
            response.headers["Access-Control-Allow-Origin"] = allowed


async def dress(request: web.Request, response: web.StreamResponse) -> None:
    """Give every answer its id and its CORS headers, streams and errors included."""
    response.headers["X-Request-Id"] = request_id(request)
    if "Server" in response.headers:
        del response.headers["Server"]
    if "Origin" in request.headers and "Access-Control-Allow-Methods" not in response.headers:
        _allow_origin(request, response, access_of(request, request.match_info))
        response.headers["Access-Control-Expose-Headers"] = (
            "X-Request-Id, X-Nexus-Provider, X-Nexus-Model, X-Nexus-Attempts, Server-Timing"
        )
