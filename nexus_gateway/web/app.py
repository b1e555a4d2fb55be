"""The aiohttp application: its routes, and who may call them."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import cache

from aiohttp import web

from nexus_gateway.dialects import DIALECTS
from nexus_gateway.discovery import load
from nexus_gateway.hooks import Hook
from nexus_gateway.routing.policies import POLICIES, Policy
from nexus_gateway.routing.pool import Pool
from nexus_gateway.routing.scheduler import STEPS_MS
from nexus_gateway.settings import Settings
from nexus_gateway.web.auth import Access
from nexus_gateway.web.endpoint import DialectEndpoint
from nexus_gateway.web.gateway import GATEWAY, open_gateway
from nexus_gateway.web.handlers import (
    events,
    health,
    metrics,
    models,
    openapi,
    page,
    providers,
    responses,
    usage,
)
from nexus_gateway.web.middleware import (
    ROUTE_OF,
    Route,
    add_common_headers,
    guard,
)
from nexus_gateway.web.request import expect

# Every route, and who may call it.
ROUTES: tuple[Route, ...] = (
    *(
        Route("POST", path, DialectEndpoint(d).answer, Access.CALLER, d)
        for path, d in DIALECTS.items()
    ),
    Route("POST", "/v1/responses/input_tokens", responses.count_input, Access.CALLER),
    Route("POST", "/v1/responses/compact", responses.compact, Access.CALLER),
    Route("GET", "/v1/responses/{id}", responses.retrieve, Access.CALLER),
    Route("DELETE", "/v1/responses/{id}", responses.delete, Access.CALLER),
    Route("GET", "/v1/responses/{id}/input_items", responses.list_input, Access.CALLER),
    Route("GET", "/v1/models", models.list_models, Access.CALLER),
    Route("GET", "/v1/models/{id:.+}", models.retrieve_model, Access.CALLER),
    Route("GET", "/v1/providers", providers.list_providers, Access.VIEWER),
    Route("POST", "/v1/providers/toggle", providers.toggle, Access.ADMIN),
    Route("GET", "/v1/usage", usage.usage, Access.VIEWER),
    Route("GET", "/v1/events", events.events, Access.VIEWER),
    Route("GET", "/metrics", metrics.metrics, Access.VIEWER),
    Route("GET", "/", page.page, Access.PUBLIC),
    Route("GET", "/static/{name}", page.static, Access.PUBLIC),
    Route("GET", "/openapi.json", openapi.openapi, Access.PUBLIC),
    Route("GET", "/health", health.health, Access.PUBLIC),
    Route("GET", "/health/live", health.live, Access.PUBLIC),
    Route("GET", "/health/ready", health.ready, Access.PUBLIC),
)


def build_app(
    settings: Settings,
    pool: Pool,
    *,
    policy_by_name: Mapping[str, Policy] | None = None,
    hooks: Mapping[str, Hook] | None = None,
    clock: Callable[[], float] = time.monotonic,
    rng: random.Random | None = None,
    pseudonym: str = "",
    backoff_ms: Sequence[int] = STEPS_MS,
) -> web.Application:
    """Build the application; it opens its gateway when it starts.

    Args:
        settings: the gateway's.
        pool: the instances.
        policy_by_name: the routing policies; None for those that are installed.
        hooks: by name, in the order in which they are called.
        clock: monotonic seconds.
        rng: randomness for routing and backoff.
        pseudonym: of the gateway in `Via`, the same in all its workers; "" for a random one.
        backoff_ms: the pauses between the attempts of a request.
    """
    policies = load(POLICIES)[0] if policy_by_name is None else policy_by_name
    app = web.Application(middlewares=[guard], client_max_size=settings.max_body_mb * 1024 * 1024)

    async def gateway(app: web.Application) -> AsyncIterator[None]:
        chance = rng or random.Random()
        opening = open_gateway(
            settings, pool, policies, hooks or {}, clock, chance, pseudonym, backoff_ms
        )
        async with opening as app[GATEWAY]:
            yield

    app.cleanup_ctx.append(gateway)
    by_handler: dict[object, Route] = {route.handler: route for route in ROUTES}
    app[ROUTE_OF] = by_handler
    for resource in _resources():
        app.router.register_resource(resource)
    app.on_response_prepare.append(add_common_headers)
    return app


@cache
def _resources() -> tuple[web.AbstractResource, ...]:
    """Return the resources of `ROUTES`: the same for each application, and slow to make."""
    router = web.UrlDispatcher()
    for route in ROUTES:
        # Load balancers send HEAD; a GET route answers both.
        for path in route.paths:
            if route.method == "GET":
                router.add_get(path, route.handler, expect_handler=expect)
            else:
                router.add_route(route.method, path, route.handler, expect_handler=expect)
    return tuple(router.resources())
