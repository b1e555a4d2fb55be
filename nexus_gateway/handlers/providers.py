"""GET /v1/providers and POST /v1/providers/toggle."""

from __future__ import annotations

import logging

from aiohttp import web

from nexus_gateway.errors import InvalidRequest, NotFound
from nexus_gateway.handlers.detail import overview
from nexus_gateway.handlers.gateway import gateway_of, json_response, read_object
from nexus_gateway.handlers.view import view

logger = logging.getLogger("nexus_gateway")


async def list_providers(request: web.Request) -> web.Response:
    """Tell all there is to know of the instances, and how the gateway is set."""
    return json_response(overview(gateway_of(request)))


async def toggle(request: web.Request) -> web.Response:
    """Switch an instance on or off; what it has in flight goes on."""
    body = await read_object(request)
    name, enabled = body.get("name"), body.get("enabled")
    if not isinstance(name, str):
        raise InvalidRequest("`name` must be an instance's name, a string.", param="name")
    if not isinstance(enabled, bool):
        raise InvalidRequest("`enabled` must be true or false.", param="enabled")
    gateway = gateway_of(request)
    pool = gateway.pool
    instance = pool.instance(name)
    if instance is None:
        names = ", ".join(i.name for i in pool.instances)
        raise NotFound(
            f"There is no instance of that name. There are: {names}.",
            param="name",
            code="instance_not_found",
        )
    if enabled:
        instance.enable()
    else:
        instance.disable()
    gateway.decided.set()
    logger.info("%s is %s", instance.name, "enabled" if enabled else "disabled")
    return json_response(view(instance))
