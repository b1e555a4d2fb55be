"""`nexus-gateway serve` with several workers: the supervisor's part, and a worker's.

The supervisor must not load aiohttp: what needs it is imported in `work` only.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
from collections.abc import MutableMapping
from dataclasses import replace
from typing import Any

from nexus_gateway.cli.environment import WRONG_SETTINGS, own_command, serve_environment
from nexus_gateway.errors import ConfigError
from nexus_gateway.server.channel import PLACE, WorkerSpec
from nexus_gateway.server.sockets import can_share_a_port, listen, os_error_text
from nexus_gateway.server.watchdog import Watchdog
from nexus_gateway.settings import Settings

logger = logging.getLogger("nexus_gateway")

CANNOT_LISTEN = 1


def take_spec(environ: MutableMapping[str, str]) -> WorkerSpec | None:
    """Return this process's specification if it is a worker, and remove it from the environment.

    Programs that a plugin starts are not workers.
    """
    text = environ.pop(PLACE, "")
    return WorkerSpec.from_text(text) if text else None


def settings_if_several(arguments: argparse.Namespace) -> Settings | None:
    """Return the settings if they ask for several workers.

    Returns None also if they are wrong: a single process then reports all problems at once.

    Raises:
        ConfigError: this platform supports only one worker.
    """
    try:
        settings = Settings.from_env(serve_environment(arguments))
    except ConfigError:
        return None
    if settings.web_concurrency == 1:
        return None
    if not can_share_a_port():
        raise ConfigError(
            ["WEB_CONCURRENCY must be 1 on this system: it has no SO_REUSEPORT for --workers."]
        )
    return settings


def supervise(arguments: argparse.Namespace, settings: Settings) -> int:
    """Run the supervisor until a signal ends it."""
    from nexus_gateway.cli import banner
    from nexus_gateway.server.supervisor import Supervisor, WorkerSpawner
    from nexus_gateway.telemetry import log

    log.configure(settings.log_level, settings.log_format, settings.secrets)
    try:
        sockets = listen(settings.host, settings.port, settings.web_concurrency)
    except OSError as error:
        address = f"{settings.host}:{settings.port}"
        logger.error("cannot listen on %s: %s", address, os_error_text(error))
        return CANNOT_LISTEN

    def announce(introduction: dict[str, Any]) -> None:
        banner.announce(introduction["start"])

    async def run() -> int:
        spawner = WorkerSpawner(own_command(arguments), os.environ, settings.host, sockets)
        supervising = Supervisor(spawner, announce).run()
        watchdog = Watchdog.from_env(os.environ)
        return await (supervising if watchdog is None else watchdog.watch(supervising))

    return asyncio.run(run())


def work(arguments: argparse.Namespace, spec: WorkerSpec) -> int:
    """Run a worker until the supervisor ends it."""
    from nexus_gateway.cli import banner, serve
    from nexus_gateway.server import process, worker

    try:
        ready = serve.prepare(arguments)
        if spec.keyed:
            serve.check_keys(ready.pool)
    except ConfigError as error:
        spec.refuse(error.problems)
        return WRONG_SETTINGS
    written = ready.settings
    # The sockets stay where they are, whatever .env contains by now; access rules depend on it.
    settings = replace(written, host=spec.host, port=spec.port)
    introduction = {
        "start": banner.startup_report(ready, spec.host, spec.port, written.web_concurrency),
        "keyed": serve.has_keys(ready.pool),
        "shutdown_timeout_ms": written.shutdown_timeout_ms,
        "HOST": written.host,
        "PORT": written.port,
        "WEB_CONCURRENCY": written.web_concurrency,
    }
    return process.run_application(
        settings,
        ready.pool,
        lambda app: worker.work(app, spec, introduction),
        pseudonym=spec.pseudonym,
        **ready.plugins,
    )
