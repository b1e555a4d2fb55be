"""`nexus-gateway chaos`: a campaign of faults, and its report."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Coroutine, Iterator
from urllib.parse import urlsplit

import aiohttp

from nexus_gateway.cli.text import TIE, paragraph, table
from nexus_gateway.errors import ConfigError
from nexus_gateway.settings import is_loopback
from nexus_gateway.testing.chaos import campaign
from nexus_gateway.testing.chaos.campaign import Campaign
from nexus_gateway.testing.chaos.judge import Ending, Tally, percentile

FAILED = 1
INTERRUPTED = 130
# With such a delay a good instance may look like a bad one.
TOO_LATE_S = 0.5


def chaos(arguments: argparse.Namespace) -> int:
    """Run a campaign and print its report; return 1 if a promise was broken.

    Raises:
        ConfigError: the arguments do not fit together.
    """
    if arguments.bad >= arguments.instances:
        raise ConfigError(["--bad must be less than --instances: at least one has to work."])
    if arguments.mock and not arguments.url:
        raise ConfigError(
            ["--mock requires --url; without --url the campaign starts its own mock."]
        )
    url, mock = (_local(text, flag) for flag, text in _addresses(arguments))
    plan = Campaign(
        requests=arguments.requests,
        instances=arguments.instances,
        bad=arguments.bad,
        concurrency=arguments.concurrency,
        rounds=arguments.rounds,
        seed=arguments.seed,
        time_limit_s=arguments.time_limit,
    )
    running = (
        campaign.run(plan, _log) if url is None else campaign.run_against(plan, url, mock, _log)
    )
    try:
        tally = asyncio.run(_until_signal(running))
    except asyncio.CancelledError:
        return INTERRUPTED
    except RuntimeError as error:
        print(f"nexus-gateway: {error}", file=sys.stderr)
        return FAILED
    except (aiohttp.ClientError, OSError) as error:
        print(f"nexus-gateway: --mock does not answer: {error}", file=sys.stderr)
        return FAILED
    print("\n".join(report(plan, tally)))
    return 0 if tally.kept else FAILED


def _addresses(arguments: argparse.Namespace) -> Iterator[tuple[str, str | None]]:
    yield "--url", arguments.url
    yield "--mock", arguments.mock


def _local(text: str | None, flag: str) -> str | None:
    """Return the root of an address.

    Raises:
        ConfigError: it is not an http address on loopback.
    """
    if text is None:
        return None
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port or 80
    except ValueError:
        host, port, parts = "", 0, urlsplit("")
    if parts.scheme != "http" or not is_loopback(host):
        raise ConfigError([f"{flag} must be http on loopback, such as http://127.0.0.1:3000."])
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _until_signal(running: Coroutine[None, None, Tally]) -> Tally:
    """Run a campaign; on a signal, cancel it so that it ends what it has started."""
    task = asyncio.ensure_future(running)
    for name in ("SIGTERM", "SIGINT", "SIGHUP"):
        if number := getattr(signal, name, None):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await task


def _log(line: str) -> None:
    print("\n".join(paragraph(line)), file=sys.stderr, flush=True)


def report(plan: Campaign, tally: Tally) -> Iterator[str]:
    """Yield the lines of the report."""
    yield f"chaos: seed {plan.seed}, {tally.requests} requests in {tally.took_s:.1f} s"
    yield ""
    rows = [(tally.endings[ending], str(ending)) for ending in Ending]
    rows += [(tally.endings[promise], f"BROKEN: {promise}") for promise in tally.broken()]
    yield table(("requests", "ended"), rows)
    yield ""
    yield from _fail_overs(tally)
    if tally.befallen:
        by_count = sorted(tally.befallen.items(), key=lambda pair: (-pair[1], pair[0]))
        yield ""
        counts = ", ".join(f"{name}{TIE}{count}" for name, count in by_count)
        yield from paragraph(f"faults hit: {counts}")
    yield from _health(tally)
    yield ""
    for promise in tally.broken():
        yield f"BROKEN: {promise} ({tally.endings[promise]}), for example:"
        yield f"  {tally.examples[promise]}"
    if tally.late_s > TOO_LATE_S:
        yield f"note: this machine is so busy that the mock was late by up to {tally.late_s:.1f} s"
    yield "every promise was kept" if tally.kept else "promises were broken"


def _fail_overs(tally: Tally) -> Iterator[str]:
    yield f"fail-overs: {tally.failed_over}"
    if hits := sum(tally.hits.values()):
        each = ", ".join(f"{number}: {count}" for number, count in sorted(tally.hits.items()))
        share = hits / max(tally.requests, 1)
        yield f"upstream requests: {hits}, {share:.3f} per request; by instance:"
        yield f"  {each}"
    yield "time to the first token, or to a complete answer, in ms:"
    head = ("  answered", "requests", "p50", "p99")
    rows = [
        (f"  {name}", len(values), _ms(percentile(values, 0.5)), _ms(percentile(values, 0.99)))
        for name, values in (("by the first attempt", tally.at_once_s), ("later", tally.later_s))
    ]
    yield table(head, rows)


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.0f}"


def _health(tally: Tally) -> Iterator[str]:
    if not tally.health:
        return
    yield ""
    yield f"/health at the end of the last round: {tally.health.get('status')}"
    head = ("  instance", "circuit", "parked", "score", "last reason")
    rows = [
        (
            f"  {one['name']}",
            one["circuitState"],
            one["parkReason"] or "no",
            one["metrics"]["healthScore"],
            one["lastReason"] or "",
        )
        for one in tally.health.get("providers", [])
    ]
    yield table(head, rows)
