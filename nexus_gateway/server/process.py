"""The process: listen, serve, drain on SIGTERM, exit.

File descriptors: as many as the system grants, and what happens when there are no more.

Each connection takes one, and a streamed answer two. When all are taken, new callers wait in the
listen queue (uvloop turns them away) until some are free again; whoever is being served notices
nothing, and no instance is blamed for what this process lacks.

Who sent SIGHUP: somebody who wants the settings read anew, or a terminal that is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any

from aiohttp import web

from nexus_gateway.hooks import Hook
from nexus_gateway.routing.policies import Policy
from nexus_gateway.routing.pool import Pool
from nexus_gateway.server.reload import LoadedConfig, Reload
from nexus_gateway.server.sockets import QUEUE, os_error_text
from nexus_gateway.settings import Settings
from nexus_gateway.upstream.client import exhausted
from nexus_gateway.web.app import build_app
from nexus_gateway.web.connections import Runner
from nexus_gateway.web.gateway import GATEWAY, Drain, Gateway

logger = logging.getLogger("nexus_gateway")

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]


SAY_AGAIN_S = 60.0


def raise_limit() -> None:
    """Let this process have as many as it may: the soft limit is often 1024."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            logger.debug("the limit of file descriptors stays at %d", soft)


class FdExhaustionHandler:
    """Says that there are none left once in a while, where a loop would for each caller."""

    def __init__(self) -> None:
        self._next_s = 0.0

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Take what the loop could not handle (an asyncio exception handler)."""
        error = context.get("exception")
        if not isinstance(error, OSError) or not exhausted(error):
            loop.default_exception_handler(context)
        elif loop.time() >= self._next_s:
            self._next_s = loop.time() + SAY_AGAIN_S
            logger.error(
                "no file descriptors are left: new callers have to wait; raise the limit "
                "(ulimit -n) or lower MAX_CONCURRENT"
            )


STDIN = 0


def block_sighup() -> None:
    """Let SIGHUP wait: until it is heeded it would end the process, and none must be lost."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})


def unblock_sighup() -> None:
    """Let it come, as there is a handler now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


class Terminal:
    """The terminal that the process was started from, if any."""

    def __init__(self) -> None:
        self._was_there = os.isatty(STDIN)

    @property
    def is_gone(self) -> bool:
        """Whether there was one, and it hung up."""
        return self._was_there and not os.isatty(STDIN)


Announce = Callable[[str, int], None]
Main = Callable[[web.Application], Coroutine[Any, Any, int]]
CANNOT_LISTEN = 1
FORCED = 130
GARBAGE_THRESHOLD = 10_000
# After the drain nothing is left to wait for but handlers that say goodbye.
CLOSE_S = 0.5
GOODBYES_S = 1.5


def run(
    settings: Settings,
    pool: Pool,
    announce: Announce,
    read: Callable[[], LoadedConfig] | None = None,
    **plugins: Any,
) -> int:
    """Serve until a signal ends it; see `run_application` and `serve`."""
    return run_application(
        settings, pool, lambda app: serve(app, settings, announce, read), **plugins
    )


def run_application(
    settings: Settings,
    pool: Pool,
    main: Main,
    *,
    policy_by_name: Mapping[str, Policy] | None = None,
    hooks: Mapping[str, Hook] | None = None,
) -> int:
    """Build the application and run it, in a loop of its own.

    Args:
        settings: what the owner set.
        pool: the instances.
        main: serves the application until it is to end; returns the exit code.
        policy_by_name: the ways to route; None for those that are installed.
        hooks: what looks at requests, by name.

    Returns:
        The exit code.
    """
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        app = build_app(settings, pool, policy_by_name=policy_by_name, hooks=hooks)
        return runner.run(main(app))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's loop where it is installed (the extra `fast`)."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


@contextlib.asynccontextmanager
async def application_runner(app: web.Application) -> AsyncIterator[web.AppRunner]:
    """Make the process and the running loop ready to serve an application; it listens nowhere."""
    raise_limit()
    asyncio.get_running_loop().set_exception_handler(FdExhaustionHandler())
    runner = Runner(app, shutdown_timeout=CLOSE_S)
    await runner.setup()
    recorder = app[GATEWAY].recorder
    recorder.later = asyncio.get_running_loop().call_later
    # What is here now stays: the collector need not walk it for each few hundred requests.
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD, 20, 50)
    try:
        yield runner
    finally:
        recorder.later = None
        recorder.flush()
        await runner.cleanup()


async def serve(
    app: web.Application,
    settings: Settings,
    announce: Announce,
    read: Callable[[], LoadedConfig] | None = None,
) -> int:
    """Serve an application in the running loop until a signal ends it.

    Args:
        app: the application.
        settings: what the owner set.
        announce: told the host and the port once it listens.
        read: reads the settings anew on SIGHUP; None where they stay as they are.

    Returns:
        The exit code: 0 after a drain, 1 when the port can't be had.
    """
    async with application_runner(app) as runner:
        site = web.TCPSite(runner, settings.host, settings.port, backlog=QUEUE)
        try:
            await site.start()
        except OSError as error:
            where = f"{settings.host}:{settings.port}"
            logger.error("cannot listen on %s: %s", where, os_error_text(error))
            return CANNOT_LISTEN
        gateway = app[GATEWAY]
        stop = _on_signals()
        async with _reloading(gateway, read, stop):
            announce(settings.host, runner.addresses[0][1])
            await stop.wait()
        await drain(gateway.drain, gateway.settings.shutdown_timeout_ms / 1000)
    return 0


@contextlib.asynccontextmanager
async def _reloading(
    gateway: Gateway, read: Callable[[], LoadedConfig] | None, stop: asyncio.Event
) -> AsyncIterator[None]:
    """Reload on SIGHUP; but where the terminal itself hung up, stop. Afterwards it does nothing."""
    terminal = Terminal()
    reload = Reload(gateway, read) if read is not None else None

    def on_hangup() -> None:
        if terminal.is_gone:
            stop.set()
        elif reload is not None:
            reload.ask()

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, on_hangup)
    unblock_sighup()
    working = asyncio.create_task(reload.work()) if reload is not None else None
    try:
        yield
    finally:
        if working is not None:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)


def _on_signals() -> asyncio.Event:
    """Return an event that SIGTERM or SIGINT sets; the second one ends the process at once."""
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            logging.shutdown()
            os._exit(FORCED)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    return stop


async def drain(requests: Drain, limit_s: float) -> None:
    """Let what runs end; at the limit, say goodbye to the rest.

    The listener stays open meanwhile: a caller gets an honest 503 instead of a closed port.
    """
    requests.begin()
    logger.info("draining: %d requests in flight", requests.in_flight)
    if not await requests.wait(limit_s):
        logger.warning("the time is up: ending %d requests", requests.in_flight)
        requests.expire()
        await requests.wait(GOODBYES_S)
