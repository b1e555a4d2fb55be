"""What every request passes: authentication, and errors as JSON.

Authentication depends on the matched route: each is registered with the access that it requires,
and a path without a route has no handler.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from aiohttp import HttpVersion10, HttpVersion11, web

from nexus_gateway.dialects.base import Dialect
from nexus_gateway.dialects.chat import CHAT_COMPLETIONS
from nexus_gateway.dialects.messages import MESSAGES, VERSION
from nexus_gateway.errors import (
    Draining,
    Forbidden,
    GatewayError,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    TooLarge,
    UnsupportedVersion,
)
from nexus_gateway.proxy.context import CallerGone
from nexus_gateway.settings import parse_bool
from nexus_gateway.web.auth import Access, check, refused_page
from nexus_gateway.web.gateway import GATEWAY, Gateway, gateway_of
from nexus_gateway.web.request import (
    CALLER,
    EXPLAIN,
    EXPLAINED,
    REQUEST_ID,
    begun_of,
    json_response,
    note_refusal,
    request_id,
)
from nexus_gateway.web.responder import allowed_origin, cors_headers, id_headers

logger = logging.getLogger("nexus_gateway")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
PREFLIGHT_S = "600"
V1 = "/v1"
_MESSAGES = "/messages"
_MODELS = "/models"


@dataclass(frozen=True, slots=True)
class Route:
    """One route: its method, path and handler, who may call it, and the dialect of
    its error responses."""

    method: str
    path: str
    handler: Handler
    access: Access
    dialect: Dialect = CHAT_COMPLETIONS

    @property
    def paths(self) -> tuple[str, ...]:
        """Where it is served: for callers also without /v1, as some base URLs do not have it."""
        is_callers = self.access is Access.CALLER
        return (self.path, self.path.removeprefix(V1)) if is_callers else (self.path,)


async def _not_found(request: web.Request) -> web.StreamResponse:
    raise web.HTTPNotFound


# A path without a route is public: it holds a 404.
_NOT_FOUND = Route("", "", _not_found, Access.PUBLIC)
# The routes by their handlers; filled by the application.
ROUTE_OF = web.AppKey("route_of", dict[object, Route])


def route_of(request: web.Request, match: web.UrlMappingMatchInfo) -> Route:
    """Return the matched route."""
    return request.app[ROUTE_OF].get(match.handler, _NOT_FOUND)


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Authenticate the caller, and answer every error in OpenAI's shape."""
    try:
        if not HttpVersion10 <= request.version <= HttpVersion11:
            raise UnsupportedVersion
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            return await _preflight(request)
        authenticate(request)
        return await handler(request)
    except GatewayError as error:
        return _error_response(request, error)
    except web.HTTPException as error:
        return _error_response(request, _translated(request, error))
    except CallerGone:
        return web.Response(status=499)
    except Exception:
        id = request_id(request)
        logger.exception("a request failed", extra={"fields": {"id": id}})
        return _error_response(request, InternalError(id))


def authenticate(request: web.Request) -> None:
    """Refuse a request during a drain, and one without valid credentials."""
    if (begun := begun_of(request)) is not None:
        request[CALLER], request[REQUEST_ID] = begun.context.caller, begun.context.history.id
        return
    gateway = request.app[GATEWAY]
    access = request.app[ROUTE_OF].get(request.match_info.handler, _NOT_FOUND).access
    request[CALLER] = admit(request.headers, access, gateway)
    if access is Access.CALLER and EXPLAIN in request.headers and _wants_explanation(request):
        check(request.headers, Access.VIEWER, gateway.settings)
        request[EXPLAINED] = True


def admit(headers: Mapping[str, str], access: Access, gateway: Gateway) -> str:
    """Return which of the gateway's keys a request has, as `auth.check`.

    Raises:
        Draining: the gateway is shutting down.
        Unauthorized, Forbidden: the credentials, or the page that calls, are not valid.
    """
    if gateway.drain.begun.is_set() and access is not Access.PUBLIC:
        raise Draining
    settings = gateway.settings
    is_open = access is Access.CALLER and not settings.gateway_keys
    if is_open and settings.cors_origin != "*":
        page = headers.get("Host"), headers.get("Origin"), headers.get("Sec-Fetch-Site")
        if why := refused_page(*page, settings.host, settings.cors_origin):
            raise Forbidden(why, code="foreign_page")
    return "" if is_open else check(headers, access, settings)


def _error_response(request: web.Request, error: GatewayError) -> web.Response:
    note_refusal(gateway_of(request), request, error.status, error)
    dialect = route_of(request, request.match_info).dialect
    path = request.path.removeprefix(V1)
    # Even if there is no such route.
    if path.startswith(_MESSAGES) or (path.startswith(_MODELS) and VERSION in request.headers):
        dialect = MESSAGES
    response = json_response(dialect.error(error.status, error.body()), error.status)
    response.headers.update(error.headers)
    if "Connection" in error.headers:
        response.force_close()
    return response


def _translated(request: web.Request, error: web.HTTPException) -> GatewayError:
    """Return aiohttp's own error as one of ours."""
    if isinstance(error, web.HTTPNotFound):
        hint = ""
        if request.path.startswith("/v1/v1/"):
            hint = " The client's base URL should end before /v1."
        return NotFound(f"There is no {request.path!r} here.{hint}", code="unknown_path")
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        message = f"{request.method} is not allowed here; use {allowed}."
        return MethodNotAllowed(message, headers={"Allow": allowed})
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return TooLarge("The body is too large.")
    translated = GatewayError(error.reason or "The request failed.")
    translated.status = error.status
    return translated


def _wants_explanation(request: web.Request) -> bool:
    try:
        return parse_bool(request.headers[EXPLAIN])
    except ValueError:
        raise InvalidRequest(
            f"{EXPLAIN} must be true or false.", param=EXPLAIN, code="invalid_explain"
        ) from None


async def _preflight(request: web.Request) -> web.StreamResponse:
    """Answer a browser's preflight of a call from another origin."""
    method = request.headers["Access-Control-Request-Method"]
    if not method.isascii() or not method.isalpha():
        raise MethodNotAllowed("Access-Control-Request-Method is not a valid method.")
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
    access = route_of(request, match).access
    response.headers.update(allowed_origin(request, for_all=not access.is_admin))
    return response


async def add_common_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Add the request's id and the CORS headers to a response that aiohttp writes."""
    route = route_of(request, request.match_info)
    response.headers.update(id_headers(request, route.dialect))
    if "Access-Control-Allow-Methods" not in response.headers:  # a preflight has its own
        response.headers.update(cors_headers(request, for_all=not route.access.is_admin))
    if "Server" in response.headers:
        del response.headers["Server"]
