"""The one aiohttp application: routes, middlewares, resources."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Callable

from aiohttp import web

from nexus_gateway.drain import Drain
from nexus_gateway.handlers import chat, events, health, models, providers
from nexus_gateway.handlers.gateway import GATEWAY, Gateway
from nexus_gateway.middlewares import ACCESS, Access, Handler, answer_errors, dress, guard
from nexus_gateway.pool import Pool
from nexus_gateway.relay import Relay
from nexus_gateway.routing import policies
from nexus_gateway.scheduler import Scheduler
from nexus_gateway.settings import Settings
from nexus_gateway.upstream import Upstream, client_session

# Every route there is, and who may call it.
ROUTES: tuple[tuple[str, str, Handler, Access], ...] = (
    ("POST", "/v1/chat/completions", chat.chat_completions, Access.CALLER),
    ("GET", "/v1/models", models.list_models, Access.CALLER),
    ("GET", "/v1/models/{id:.+}", models.retrieve_model, Access.CALLER),
    ("POST", "/v1/providers/toggle", providers.toggle, Access.ADMIN),
    ("GET", "/v1/events", events.events, Access.ADMIN),
    ("GET", "/health", health.health, Access.PUBLIC),
    ("GET", "/health/live", health.live, Access.PUBLIC),
    ("GET", "/health/ready", health.ready, Access.PUBLIC),
)


def build_app(
    settings: Settings,
    pool: Pool,
    *,
    clock: Callable[[], float] = time.monotonic,
    rng: random.Random | None = None,
) -> web.Application:
    """Build the application.

    Args:
        settings: what the owner set.
        pool: the instances.
        clock: monotonic seconds.
        rng: chance, for routing and backoff.
    """
    scheduler = Scheduler(clock, rng or random.Random(), policies())
    app = web.Application(
        middlewares=[answer_errors, guard], client_max_size=settings.max_body_mb * 1024 * 1024
    )
    app[GATEWAY] = Gateway(settings, pool, scheduler, Drain())
    app[events.FEED] = events.Feed(pool)
    by_handler: dict[object, Access] = {handler: access for _, _, handler, access in ROUTES}
    app[ACCESS] = by_handler
    for method, path, handler, _ in ROUTES:
        # Load balancers ask by HEAD; a GET route answers both.
        app.router.add_get(path, handler) if method == "GET" else app.router.add_post(path, handler)
    app.on_response_prepare.append(dress)
    app.cleanup_ctx.append(_relay)
    return app


async def _relay(app: web.Application) -> AsyncIterator[None]:
    """Open the way to the upstreams, and close it at the end."""
    gateway = app[GATEWAY]
    async with client_session() as session:
        upstream = Upstream(session, gateway.settings)
        clock = gateway.scheduler.clock
        gateway.relay = Relay(gateway.scheduler, upstream, gateway.settings, clock)
        yield
