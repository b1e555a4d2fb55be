"""The one aiohttp application: routes, middlewares, resources."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping

from aiohttp import web

from nexus_gateway.dialects import DIALECTS
from nexus_gateway.discovery import load
from nexus_gateway.hooks import Hook
from nexus_gateway.proxy.hook_runner import HookRunner
from nexus_gateway.proxy.relay import Relay
from nexus_gateway.proxy.resumption import Resuming
from nexus_gateway.routing.policies import POLICIES, Policy
from nexus_gateway.routing.pool import Pool
from nexus_gateway.routing.resolver import ModelResolver
from nexus_gateway.routing.scheduler import Scheduler
from nexus_gateway.settings import Settings
from nexus_gateway.telemetry.ledger_writer import LedgerWriter
from nexus_gateway.telemetry.log import log_request
from nexus_gateway.upstream.attempt import Upstream
from nexus_gateway.upstream.client import open_client
from nexus_gateway.web.auth import Access
from nexus_gateway.web.endpoint import DialectEndpoint
from nexus_gateway.web.gateway import GATEWAY, Drain, Gateway
from nexus_gateway.web.handlers import events, health, metrics, models, page, providers, usage
from nexus_gateway.web.middleware import (
    ROUTE_OF,
    Route,
    add_common_headers,
    guard,
)
from nexus_gateway.web.request import expect


async def keep_ledger(app: web.Application) -> AsyncIterator[None]:
    """Keep the ledger as long as an application runs (for `cleanup_ctx`)."""
    gateway = app[GATEWAY]
    if not gateway.settings.ledger:
        yield
        return
    writer = LedgerWriter(gateway.settings.ledger)
    writer.start()
    gateway.observers.append(writer.observe)
    gateway.shares.append(writer.share)
    gateway.ledger = writer
    yield
    await asyncio.to_thread(writer.close)


# Every route there is, and who may call it.
ROUTES: tuple[Route, ...] = (
    *(
        Route("POST", path, DialectEndpoint(d).answer, Access.CALLER, d)
        for path, d in DIALECTS.items()
    ),
    Route("GET", "/v1/models", models.list_models, Access.CALLER),
    Route("GET", "/v1/models/{id:.+}", models.retrieve_model, Access.CALLER),
    Route("GET", "/v1/providers", providers.list_providers, Access.VIEWER),
    Route("POST", "/v1/providers/toggle", providers.toggle, Access.ADMIN),
    Route("GET", "/v1/usage", usage.usage, Access.VIEWER),
    Route("GET", "/v1/events", events.events, Access.VIEWER),
    Route("GET", "/metrics", metrics.metrics, Access.VIEWER),
    Route("GET", "/", page.page, Access.PUBLIC),
    Route("GET", "/static/{name}", page.page, Access.PUBLIC),
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
) -> web.Application:
    """Build the application.

    Args:
        settings: what the owner set.
        pool: the instances.
        policy_by_name: the ways to route; None for those that are installed.
        hooks: what looks at requests, by name.
        clock: monotonic seconds.
        rng: chance, for routing and backoff.
    """
    known = load(POLICIES)[0] if policy_by_name is None else policy_by_name
    scheduler = Scheduler(clock, rng or random.Random(), known)
    app = web.Application(
        middlewares=[guard],
        client_max_size=settings.max_body_mb * 1024 * 1024,
    )
    chain = HookRunner(hooks) if hooks else None
    targets = ModelResolver(pool, strict=settings.strict_models)
    app[GATEWAY] = Gateway(settings, pool, scheduler, Drain(), targets, chain)
    app[events.FEED] = events.feed_of(app[GATEWAY])
    metrics.count(app)
    app[GATEWAY].observers.append(log_request)
    by_handler: dict[object, Route] = {route.handler: route for route in ROUTES}
    app[ROUTE_OF] = by_handler
    for route in ROUTES:
        # Load balancers ask by HEAD; a GET route answers both.
        add = app.router.add_get if route.method == "GET" else app.router.add_post
        add(route.path, route.handler, expect_handler=expect)
    app.on_response_prepare.append(add_common_headers)
    app.cleanup_ctx.extend([_relay, keep_ledger])
    if settings.traces:
        app.cleanup_ctx.append(_traces)
    return app


async def _relay(app: web.Application) -> AsyncIterator[None]:
    """Open the way to the upstreams, and close it at the end."""
    gateway = app[GATEWAY]
    async with open_client(direct=gateway.settings.direct_path) as client:
        scheduler = gateway.scheduler

        def make_relay(settings: Settings) -> Relay:
            kind = Resuming if settings.resume else Relay
            return kind(scheduler, Upstream(client, settings), settings)

        gateway.make_relay, gateway.relay = make_relay, make_relay(gateway.settings)
        yield
    if gateway.hooks is not None:
        await gateway.hooks.close()


async def _traces(app: web.Application) -> AsyncIterator[None]:
    """Open the way to the collector, and close it at the end."""
    from nexus_gateway.telemetry.export import open_tracing

    async with open_tracing() as tracing:
        app[GATEWAY].tracing = tracing
        yield
        app[GATEWAY].tracing = None
