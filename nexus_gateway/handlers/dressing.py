"""What every answer wears: the request's id, and the headers that let pages read it."""

from __future__ import annotations

from aiohttp import web

from nexus_gateway.dialects.dialect import Dialect
from nexus_gateway.handlers.gateway import gateway_of, request_id

_EXPOSED = "X-Request-Id, X-Nexus-Provider, X-Nexus-Model, X-Nexus-Attempts, Server-Timing"


def identity(request: web.Request, dialect: Dialect) -> dict[str, str]:
    """Return the headers that tell an answer's id, by the name the dialect's clients know too."""
    id = request_id(request)
    headers = {"X-Request-Id": id}
    if dialect.id_header:
        headers[dialect.id_header] = id
    return headers


def readable(request: web.Request, *, for_all: bool) -> dict[str, str]:
    """Return the headers that let a page of another origin read an answer, where one asks.

    Args:
        request: what is answered.
        for_all: whether any origin may, where the owner does not name one.
    """
    if "Origin" not in request.headers:
        return {}
    origin = allowed_origin(request, for_all=for_all)
    return {**origin, "Access-Control-Expose-Headers": _EXPOSED}


def allowed_origin(request: web.Request, *, for_all: bool) -> dict[str, str]:
    """Say which origin may read an answer."""
    allowed = gateway_of(request).settings.cors_origin
    if allowed == "*":
        return {"Access-Control-Allow-Origin": "*"} if for_all else {}
    headers = {"Vary": "Origin"}
    if request.headers.get("Origin") == allowed:
        headers["Access-Control-Allow-Origin"] = allowed
    return headers
