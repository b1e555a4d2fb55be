"""`nexus-gateway serve` with several workers: the supervisor's part of it, and a worker's."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import MutableMapping
from dataclasses import replace
from typing import Any

from nexus_gateway.cli.environment import WRONG_SETTINGS, serve_environment
from nexus_gateway.errors import ConfigError
from nexus_gateway.server.channel import PLACE, WorkerSpec
from nexus_gateway.server.sockets import can_share_a_port, listen, os_error_text
from nexus_gateway.settings import Settings

logger = logging.getLogger("nexus_gateway")

CANNOT_LISTEN = 1


def place(environ: MutableMapping[str, str]) -> WorkerSpec | None:
    """Return this process's place among workers; None where it is none.

    It is taken out of the environment, as what a plugin starts is no worker.
    """
    text = environ.pop(PLACE, "")
    return WorkerSpec.from_text(text) if text else None


def settings_of_several(arguments: argparse.Namespace) -> Settings | None:
    """Return the settings where they ask for several workers.

    None also where they are wrong: one process tells everything that is, at once.

    Raises:
        ConfigError: this platform can have only one.
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
    """Keep several workers until a signal ends them."""
    from nexus_gateway.cli import banner
    from nexus_gateway.server.supervisor import Supervisor, WorkerSpawner
    from nexus_gateway.telemetry import log

    log.configure(settings.log_level, settings.log_format, settings.secrets)
    try:
        sockets = listen(settings.host, settings.port, settings.web_concurrency)
    except OSError as error:
        where = f"{settings.host}:{settings.port}"
        logger.error("cannot listen on %s: %s", where, os_error_text(error))
        return CANNOT_LISTEN

    def announce(introduction: dict[str, Any]) -> None:
        banner.announce(introduction["start"])

    async def run() -> int:
        nursery = WorkerSpawner(_command(arguments), os.environ, settings.host, sockets)
        return await Supervisor(nursery, announce).run()

    return asyncio.run(run())


def _command(arguments: argparse.Namespace) -> list[str]:
    """Return what runs this command once more."""
    if arguments.words is None:
        return [sys.executable, *sys.orig_argv[1:]]
    return [sys.executable, "-m", "nexus_gateway", *arguments.words]


def work(arguments: argparse.Namespace, place: WorkerSpec) -> int:
    """Be a worker until the supervisor ends it."""
    from nexus_gateway.cli import banner, serve
    from nexus_gateway.server import process, worker

    try:
        ready = serve.prepare(arguments)
        if place.keyed:
            serve.check_keys(ready.pool)
    except ConfigError as error:
        place.refuse(error.problems)
        return WRONG_SETTINGS
    written = ready.settings
    # The sockets are where they are, whatever .env says by now; who may call depends on it.
    settings = replace(written, host=place.host, port=place.port)
    introduction = {
        "start": banner.startup_report(ready, place.host, place.port, written.web_concurrency),
        "keyed": serve.has_keys(ready.pool),
        "shutdown_timeout_ms": written.shutdown_timeout_ms,
        "HOST": written.host,
        "PORT": written.port,
        "WEB_CONCURRENCY": written.web_concurrency,
    }
    return process.run_application(
        settings,
        ready.pool,
        lambda app: worker.work(app, place, introduction),
        **ready.plugins,
    )
