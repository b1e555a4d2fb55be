"""One process from start to exit: listen, serve, reload on SIGHUP, drain on SIGTERM.

Each connection needs a file descriptor, and a streamed response two. When none are left, new
connections wait in the listen queue (uvloop rejects them) until some are free again. Requests in
flight go on, and no instance's health suffers from a limit of this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any

from aiohttp import web

from nexus_gateway.fastpath.connection import FastRunner
from nexus_gateway.hooks import Hook
from nexus_gateway.routing.policies import Policy
from nexus_gateway.routing.pool import Pool
from nexus_gateway.server.reload import LoadedConfig, Reload
from nexus_gateway.server.sockets import QUEUE, listen, os_error_text
from nexus_gateway.server.watchdog import Watchdog
from nexus_gateway.settings import Settings
from nexus_gateway.telemetry import stderr
from nexus_gateway.telemetry.recorder import Recorder
from nexus_gateway.upstream.client import exhausted
from nexus_gateway.web.app import build_app
from nexus_gateway.web.gateway import GATEWAY, Drain, Gateway

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

logger = logging.getLogger("nexus_gateway")

Announce = Callable[[str, int], None]
Main = Callable[[web.Application], Coroutine[Any, Any, int]]
CANNOT_LISTEN = 1
FORCED = 130
STDIN = 0
GARBAGE_THRESHOLD = 10_000
# While a thread works on a large body, the loop waits so long for each connection with news.
SWITCH_S = 0.0005
LOG_EVERY_S = 60.0
FEW_DESCRIPTORS = 512
# An eighth is for look-ups, further attempts, and connections that are about to be refused.
SPARE_SHARE = 8
# Of a worker with its listeners and channel, a ledger and a store; some are opened later.
USED_DESCRIPTORS = 16
# After the drain only handlers remain that send their last event.
CLOSE_S = 0.5
ABORT_S = 1.5


def run(
    settings: Settings,
    pool: Pool,
    announce: Announce,
    read: Callable[[], LoadedConfig] | None = None,
    watchdog: Watchdog | None = None,
    **plugins: Any,
) -> int:
    """Serve until a signal ends it; see `run_application` and `serve`."""

    def main(app: web.Application) -> Coroutine[Any, Any, int]:
        serving = serve(app, settings, announce, read)
        return serving if watchdog is None else watchdog.watch(serving)

    return run_application(settings, pool, main, **plugins)


def run_application(
    settings: Settings,
    pool: Pool,
    main: Main,
    *,
    policy_by_name: Mapping[str, Policy] | None = None,
    hooks: Mapping[str, Hook] | None = None,
    pseudonym: str = "",
) -> int:
    """Build the application and run `main` with it in a new event loop; return its exit code."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        app = build_app(
            settings, pool, policy_by_name=policy_by_name, hooks=hooks, pseudonym=pseudonym
        )
        return runner.run(main(app))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's loop if it is installed (the extra `fast`).

    With few descriptors asyncio's own is better: uvloop accepts all connections that wait at once.
    """
    if limit_of_descriptors(hard=True) < FEW_DESCRIPTORS:
        return None
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def serve(
    app: web.Application,
    settings: Settings,
    announce: Announce,
    read: Callable[[], LoadedConfig] | None = None,
) -> int:
    """Serve an application in the running loop until a signal ends it; return the exit code.

    `announce` is called with the host and the port once it listens. Without `read`, which reads the
    settings again, SIGHUP is ignored.
    """
    async with application_runner(app) as runner:
        try:
            (listeners,) = listen(settings.host, settings.port, 1)
        except OSError as error:
            address = f"{settings.host}:{settings.port}"
            logger.error("cannot listen on %s: %s", address, os_error_text(error))
            return CANNOT_LISTEN
        for listener in listeners:
            await accept(runner, listener)
        gateway = app[GATEWAY]
        stop = _on_signals(gateway.recorder)
        async with _reloading(gateway, read, stop):
            announce(settings.host, runner.addresses[0][1])
            await stop.wait()
        await drain(gateway.drain, gateway.settings.shutdown_timeout_ms / 1000)
    return 0


async def accept(runner: web.AppRunner, listener: socket.socket) -> web.SockSite:
    """Begin to accept connections on a listening socket.

    With few descriptors one at a time: each is refused, if there are too many, before the next.
    """
    is_scarce = limit_of_descriptors() < FEW_DESCRIPTORS
    site = web.SockSite(runner, listener, backlog=1 if is_scarce else QUEUE)
    await site.start()
    if is_scarce:
        listener.listen(QUEUE)  # asyncio has set the length of the kernel's queue, too
    return site


@contextlib.asynccontextmanager
async def application_runner(app: web.Application) -> AsyncIterator[web.AppRunner]:
    """Prepare the process and the running loop to serve an application; it does not listen yet."""
    raise_limit()
    asyncio.get_running_loop().set_exception_handler(FdExhaustionHandler())
    runner = FastRunner(app, shutdown_timeout=CLOSE_S)
    await runner.setup()
    _limit_requests(app[GATEWAY])
    app[GATEWAY].recorder.later = asyncio.get_running_loop().call_later
    # What exists now stays: the collector need not traverse it every few hundred requests.
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD, 20, 50)
    sys.setswitchinterval(SWITCH_S)
    try:
        yield runner
    finally:
        await runner.cleanup()


async def drain(requests: Drain, limit_s: float) -> None:
    """Wait for the requests in flight; after the limit, abort those that are left.

    The listener stays open meanwhile: new requests get a 503 instead of a closed port.
    """
    requests.begin()
    logger.info("draining: %d requests in flight", requests.in_flight)
    if not await requests.wait(limit_s):
        logger.warning("shutdown timeout: aborting %d requests", requests.in_flight)
        requests.expire()
        await requests.wait(ABORT_S)


# Signals


def _on_signals(recorder: Recorder) -> asyncio.Event:
    """Return an event that SIGTERM or SIGINT sets; the second signal ends the process at once."""
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            recorder.flush()
            stderr.flush()
            os._exit(FORCED)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    return stop


@contextlib.asynccontextmanager
async def _reloading(
    gateway: Gateway, read: Callable[[], LoadedConfig] | None, stop: asyncio.Event
) -> AsyncIterator[None]:
    """Reload on SIGHUP; if the terminal hung up, stop instead. Afterwards SIGHUP is ignored."""
    terminal = Terminal()
    reload = Reload(gateway, read) if read is not None else None

    def on_hangup() -> None:
        if terminal.is_gone:
            stop.set()
        elif reload is not None:
            reload.request()

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, on_hangup)
    unblock_sighup()
    task = asyncio.create_task(reload.run()) if reload is not None else None
    try:
        yield
    finally:
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


class Terminal:
    """The terminal that the process was started from, if any: it sends SIGHUP when it closes."""

    def __init__(self) -> None:
        self._was_there = os.isatty(STDIN)

    @property
    def is_gone(self) -> bool:
        return self._was_there and not os.isatty(STDIN)


def block_sighup() -> None:
    """Keep SIGHUP pending until there is a handler: its default action ends the process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})


def unblock_sighup() -> None:
    """Deliver SIGHUP from now on, and the one that is pending."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


# File descriptors


def raise_limit() -> None:
    """Raise the soft limit of file descriptors, often 1024, to the hard limit."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            logger.debug("the limit of file descriptors stays at %d", soft)


def limit_of_descriptors(*, hard: bool = False) -> float:
    """Return how many files this process may open, or could after `raise_limit`."""
    if resource is None:
        return math.inf
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[hard]
    return math.inf if limit == resource.RLIM_INFINITY else limit


def _limit_requests(gateway: Gateway) -> None:
    """Admit as many requests as there are descriptors for: one for its caller, one for upstream."""
    limit = limit_of_descriptors()
    if limit == math.inf:
        return
    used = USED_DESCRIPTORS
    with contextlib.suppress(OSError):  # elsewhere than on Linux
        used = max(used, len(os.listdir("/proc/self/fd")))
    gateway.drain.places = max(1, (limit - used - limit // SPARE_SHARE) // 2)
    gateway.client.limit_connections(gateway.drain.places)
    wanted = gateway.settings.max_concurrent or math.inf
    if gateway.drain.places < wanted:
        logger.warning(
            "this process may open %d files, so it serves %d requests at once and refuses further "
            "ones: raise the limit (ulimit -n)",
            *(limit, gateway.drain.places),
        )


class FdExhaustionHandler:
    """An exception handler of the loop that logs a lack of descriptors once a minute.

    The loop itself would log every connection that it cannot accept.
    """

    def __init__(self) -> None:
        self._next_s = 0.0

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, OSError) or not exhausted(error):
            loop.default_exception_handler(context)
        elif loop.time() >= self._next_s:
            self._next_s = loop.time() + LOG_EVERY_S
            logger.error(
                "no file descriptors are left: new connections have to wait; raise the limit "
                "(ulimit -n) or lower MAX_CONCURRENT"
            )
