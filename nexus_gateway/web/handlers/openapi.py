"""GET /openapi.json."""

from __future__ import annotations

from aiohttp import web

from nexus_gateway.web.middleware import ROUTE_OF
from nexus_gateway.web.openapi import document
from nexus_gateway.web.request import json_response


async def openapi(request: web.Request) -> web.Response:
    return json_response(document(request.app[ROUTE_OF].values()))
